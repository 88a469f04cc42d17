"""The rows of a task, in the hub's own schema."""
