"""What is run: `Cell`s, the product of backbones, tasks and methods, each with its recipe."""
