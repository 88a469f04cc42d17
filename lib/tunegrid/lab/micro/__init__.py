"""Makes the micro data and the three micro backbones that are pretrained on it, in `fixtures/`."""
