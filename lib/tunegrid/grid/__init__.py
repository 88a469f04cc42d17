"""The `Cell`s that run: combinations of a backbone, a task and a method, each with its recipe."""
