"""Every cell over a packed base as a test: train, score, then merge the adapter in three ways and hold each to the adapter.

`pytest -m merges` trains the study's QLoRA cells on micro backbones, `-m "merges and zoo"` QLoRA and its like in the zoo, and
`-m "merges and full"` the study's at true size.
"""

import pytest

from tunegrid.terminal import visible


@pytest.mark.merges
@pytest.mark.cells("quick", "zoo", "full", packed=True)
def test_merges(trained, merges, record):
    cell = trained()
    missed = record(*cell, merges=cell.evaluation and merges(cell.evaluation)).missed
    assert not missed, visible("; ".join(missed))
