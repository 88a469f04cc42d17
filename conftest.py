"""Brings the suite's plugins if pytest was given settings of another project.

pyproject.toml loads them earlier, by `-p`: pytest must know their options before it looks at words that may be paths.
"""

pytest_plugins = ["fixtures.plugins"]
