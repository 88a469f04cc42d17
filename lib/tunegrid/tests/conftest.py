"""A fixture for the project's own tests."""

import pytest

from tunegrid.runs import examples


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A separate store of examples, so that made-up runs leave the machine's store alone."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    return tmp_path / "store"
