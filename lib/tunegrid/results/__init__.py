"""Saved results: statuses, tables, the gate's verdicts, estimates. Needs no torch."""
