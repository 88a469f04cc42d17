"""The commands behind `tunegrid NAME`, one module each: each prints text or writes files, and returns an exit code."""
