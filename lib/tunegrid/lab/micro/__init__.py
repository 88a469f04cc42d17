"""The embedded default: a small world in text, and three backbones pretrained on it. In: seeds. Out: `fixtures/`."""
