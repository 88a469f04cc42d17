"""A marker, an option and a fixture of the project's own tests."""

import pytest

from tunegrid.results import examples


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-schema`, of the test that holds reports/schema.json to the record's classes, writes the file first."""
    parser.addoption("--write-schema", action="store_true", help="write reports/schema.json anew before it is checked")


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that CI leaves out."""
    config.addinivalue_line("markers", "slow: takes over five seconds; CI leaves it out by -m 'not slow'")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of examples of its own, so that those of made-up runs stay out of the machine's."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    return tmp_path / "store"
