"""The lab: how we measure the suite itself, by `python -m tunegrid.lab NAME`. No product module imports it."""
