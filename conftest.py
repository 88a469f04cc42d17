"""Brings the suite's plugins if pytest was given another project's settings; pyproject.toml loads
them earlier, by `-p`.
"""

pytest_plugins = ["fixtures.plugins"]
