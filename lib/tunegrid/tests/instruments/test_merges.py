"""An adapter over a packed base, served and merged in three ways: what is the same, and what is
seen where a merge is wrong.
"""

from functools import cache

import pytest
import torch

from tunegrid.instruments.merges import INSTRUMENT, MEANING
from tunegrid.run.serving import Serving
from tunegrid.tests.instruments.asking import asked_cell, values
from tunegrid.tests.small import quick_cell, silent

# As asking does: PEFT's, on rounding where it merges
pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "per_device_train_batch_size": 4,
}


@cache
def trained(cell_id):
    """A cell after four updates at a high rate."""
    asked = asked_cell(quick_cell(cell_id, **SETTINGS))
    asked.trainer.run(silent())
    return asked.trainer


def merged(cell_id, serving=None):
    asked = asked_cell(
        quick_cell(cell_id, **SETTINGS), trainer=trained(cell_id), serving=serving or Serving()
    )
    asked.trainer.model.eval()
    with torch.no_grad():
        return INSTRUMENT.measure(asked, None)


@pytest.mark.parametrize("cell_id", ["bert_sa_qlora", "gpt2_sum_qlora"])
def test_each_merge_lies_on_its_base_and_has_the_adapter_in_every_layer(cell_id):
    figures = merged(cell_id)
    assert list(INSTRUMENT.objections(figures)) == []
    assert [values(figures, "own base", base) for base in MEANING] == [[1.0]] * 3
    layers = [values(figures, "alike", base) for base in MEANING]
    assert layers == [[1.0] * len(layers[0])] * 3
    if cell_id == "gpt2_sum_qlora":
        return  # its logits are of many steps
    # Packed layers compute in bf16, of 8 bits, and one feeds the next: a few steps. Packing again
    # loses more.
    assert (
        values(figures, "largest difference", "unpacked")[0]
        <= 2**-6 * values(figures, "largest logit", "served")[0]
    )
    assert values(figures, "mean difference", "unpacked") < values(
        figures, "mean difference", "packed"
    )
