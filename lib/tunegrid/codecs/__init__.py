"""Turns rows into batches for a model, and model outputs into predictions: text or labels."""
