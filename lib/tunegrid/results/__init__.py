"""Saved results: statuses, tables and the gate's verdicts. Needs no torch."""
