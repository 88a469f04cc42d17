"""Measures the suite itself: `python -m tunegrid.lab NAME`. Nothing that users run imports it."""
