"""Every cell as a test: train, score, then score rows as shifts change them.

`pytest -m shifted` has the study's cells on micro backbones, `-m "shifted and zoo"` the zoo's, and `-m "shifted and full"` the
study's at true size.
"""

import pytest

from tunegrid.terminal import visible


@pytest.mark.shifted
@pytest.mark.cells("quick", "zoo", "full")
def test_shifted(trained, shifts, record):
    cell = trained()
    missed = record(*cell, shifted=cell.evaluation and shifts()).missed
    assert not missed, visible("; ".join(missed))
