"""The lab: how we measure the suite itself. `python -m tunegrid.lab NAME` runs one measurement; no product module imports it."""
