"""The commands of `tunegrid`, one module each, and their helpers; `main` returns the exit code."""
