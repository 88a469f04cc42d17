"""Saved results. In: records. Out: their status, a table, verdicts of a gate, estimates. Needs no torch."""
