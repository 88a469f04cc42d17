"""What is run. In: nothing. Out: `Cell`s, the product of backbones, tasks and methods, each with its recipe."""
