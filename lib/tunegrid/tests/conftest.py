"""A marker and a fixture of the project's own tests."""

import pytest

from tunegrid.results import examples


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that CI leaves out."""
    config.addinivalue_line("markers", "slow: takes over five seconds; CI leaves it out by -m 'not slow'")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of examples of its own, so that those of made-up runs stay out of the machine's."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    return tmp_path / "store"
