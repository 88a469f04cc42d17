"""The commands behind `python -m lib NAME`, one module each. In: arguments. Out: text or files, and an exit code."""
