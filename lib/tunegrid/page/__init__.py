"""Presents a run as one HTML file that needs no network. Needs no torch."""
