"""An adapter over a packed base, served and merged in three ways: what is the same, and what is
seen where a merge is wrong.
"""

from functools import cache

import pytest
import torch

from tunegrid.instruments.merges import INSTRUMENT, MEANING
from tunegrid.tests.instruments.asking import asked_cell, values
from tunegrid.tests.small import four_update_cell, silent

# As asking does: PEFT's, on rounding where it merges
pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def merge_figures(cell_id):
    """The figures of a cell after four updates at a high rate."""
    asked = asked_cell(four_update_cell(cell_id))
    asked.trainer.run(silent())
    asked.model.eval()
    with torch.no_grad():
        return INSTRUMENT.measure(asked, None)


@pytest.mark.parametrize("cell_id", ["bert_sa_qlora", "gpt2_sum_qlora"])
def test_each_merge_lies_on_its_base_and_has_the_adapter_in_every_layer(cell_id):
    figures = merge_figures(cell_id)
    assert list(INSTRUMENT.objections(figures)) == []
    for base in MEANING:
        assert values(figures, "own base", base) == [1.0]
    layers = [values(figures, "alike", base) for base in MEANING]
    assert layers == [[1.0] * len(layers[0])] * 3


def test_packing_again_loses_more_than_merging_onto_the_unpacked_base():
    figures = merge_figures("bert_sa_qlora")
    [largest_logit] = values(figures, "largest logit", "served")
    [largest] = values(figures, "largest difference", "unpacked")
    # Packed layers compute in bf16, of 8 bits, and one feeds the next: a few steps
    assert largest <= 2**-6 * largest_logit
    [unpacked] = values(figures, "mean difference", "unpacked")
    [packed] = values(figures, "mean difference", "packed")
    assert unpacked < packed
