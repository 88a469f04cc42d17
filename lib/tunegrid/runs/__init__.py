"""Handles saved runs, with their files, rows, examples and statuses. Needs no torch."""
