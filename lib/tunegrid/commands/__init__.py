"""The commands behind `tunegrid NAME`, one module each; `main` returns the exit code."""
