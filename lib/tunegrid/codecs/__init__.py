"""Turns rows into batches for a model, and its outputs into predictions: text or labels."""
