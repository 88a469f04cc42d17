"""The commands behind `tunegrid NAME`, one module each. In: arguments. Out: text or files, and an exit code."""
