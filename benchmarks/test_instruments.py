"""Every cell as a test that trains and scores it, and then measures one thing more.

`pytest -m forgetting` asks the backbone for its own pretraining loss before and after, `-m shifted` scores rows as shifts
change them, and `-m merges` merges the adapter of each cell over a packed base in three ways and holds each to the adapter.
Each has the study's cells on micro backbones; `-m "shifted and zoo"` has the zoo's, and `-m "shifted and full"` the study's at
true size.
"""

import pytest

from tunegrid.results.forgetting import forgetting_record
from tunegrid.terminal import visible


@pytest.mark.forgetting
@pytest.mark.cells("quick", "zoo", "full")
def test_forgetting(language, trained, record):
    before = language()
    cell = trained()
    missed = record(*cell, forgetting=cell.evaluation and forgetting_record(before, language())).missed
    assert not missed, visible("; ".join(missed))


@pytest.mark.shifted
@pytest.mark.cells("quick", "zoo", "full")
def test_shifted(trained, shifts, record):
    cell = trained()
    missed = record(*cell, shifted=cell.evaluation and shifts()).missed
    assert not missed, visible("; ".join(missed))


@pytest.mark.merges
@pytest.mark.cells("quick", "zoo", "full", packed=True)
def test_merges(trained, merges, record):
    cell = trained()
    missed = record(*cell, merges=cell.evaluation and merges(cell.evaluation)).missed
    assert not missed, visible("; ".join(missed))
