"""What runs: `Cell`s, combinations of a backbone, a task and a method, each with its recipe."""
