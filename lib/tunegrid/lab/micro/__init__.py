"""Builds the micro data and the three micro backbones in `fixtures/`."""
