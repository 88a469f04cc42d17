"""Makes the micro data and the three micro backbones pretrained on it, in `fixtures/`."""
