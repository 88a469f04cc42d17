"""Reads, splits, checks and describes the rows of a task."""
