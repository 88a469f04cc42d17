"""The option of the test that holds reports/schema.json to the record's classes."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-schema` writes the file first."""
    parser.addoption("--write-schema", action="store_true", help="write reports/schema.json anew before it is checked")
