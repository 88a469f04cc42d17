"""Saved runs: their files, rows and examples, and the status of a record. Needs no torch."""
