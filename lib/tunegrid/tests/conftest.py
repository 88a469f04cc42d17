"""A marker and an option of the project's own tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-schema`, of the test that holds reports/schema.json to the record's classes, writes the file first."""
    parser.addoption("--write-schema", action="store_true", help="write reports/schema.json anew before it is checked")


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that CI leaves out."""
    config.addinivalue_line("markers", "slow: takes over five seconds; CI leaves it out by -m 'not slow'")
