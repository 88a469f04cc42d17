"""A fixture of the project's own tests."""

import pytest

from tunegrid.runs import examples


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of examples of its own, so that those of made-up runs stay out of the machine's."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    return tmp_path / "store"
