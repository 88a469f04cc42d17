"""Loads the suite's plugins if pytest was given another project's settings.

pyproject.toml loads them earlier, through `-p`.
"""

pytest_plugins = ["fixtures.plugins"]
