"""Every cell as a test: ask the backbone for its own pretraining loss, train and score the cell, and ask again.

`pytest -m forgetting` has the study's cells on micro backbones, `-m "forgetting and zoo"` the zoo's, and `-m "forgetting and
full"` the study's at true size.
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
