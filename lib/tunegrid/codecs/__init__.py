"""Turns rows into batches for a model, and a model's outputs into predictions: text or labels. A codec has no weights."""
