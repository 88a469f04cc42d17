"""The commands of `tunegrid NAME`, one module each; every `main` returns the exit code."""
