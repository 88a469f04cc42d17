"""Loads the suite's plugins if pytest was given another project's settings.

With the suite's own settings, `-p` in pyproject.toml has already loaded them.
"""

pytest_plugins = ["fixtures.plugins"]
