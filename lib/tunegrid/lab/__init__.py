"""Measures the suite itself: `python -m tunegrid.lab NAME`. No product module imports it."""
