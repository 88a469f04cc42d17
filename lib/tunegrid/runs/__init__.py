"""Handles the files, rows, examples and statuses of saved runs. Needs no torch."""
