"""Methods beyond the study's three: each is a few lines, trains in the same trainer and is held to
the same audits.
"""

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tunegrid.audits import Evidence, run_audits
from tunegrid.grid.methods import LORA, QLORA, SFT, Measured, closest_to_limit
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import METHODS, zoo
from tunegrid.record.checks import NEED_LENGTH
from tunegrid.tests.small import cell_trainer, get_evidence, read_rows, train_rows

REVIEWS, QUESTIONS, NEWS = (
    read_rows(f"{name}/train")[:16] for name in ("amazon_polarity", "squad", "cnn_dailymail")
)


# The zoo: every combination is a cell or refused, and no method is taken for plain LoRA.

GRID = zoo()
OPEN = zoo()
OPEN.refused.clear()


def trained_cell(cell_id: str, built=None, updates: int = 3, rows: int = 8) -> Evidence:
    """A cell of the zoo after a few updates; `built` is the method that really trained."""
    profile = replace(ZOO_PROFILE, max_steps=updates, changes={"per_device_train_batch_size": 4})
    cell = OPEN.cell(cell_id, profile)
    trainer = cell_trainer(replace(cell, method=built or cell.method), train_rows(cell_id)[:rows])
    return replace(get_evidence(trainer, run=True), cell=cell)


def failed(evidence: Evidence) -> dict[str, str]:
    return {
        f.name: f.detail for f in run_audits(evidence) if not f.passed and f.name not in NEED_LENGTH
    }


def test_every_combination_is_a_cell_or_refused_and_cells_of_a_backbone_and_task_have_one_budget():
    everything = {f"{b}_{t}_{m.id}" for b, t, m in product(GRID.backbones, GRID.tasks, METHODS)}
    cells = GRID.cells(ZOO_PROFILE)
    refused = set(GRID.unsupported(ZOO_PROFILE))
    assert {cell.id for cell in cells} | refused == everything
    assert len(cells) + len(refused) == len(everything)
    budgets = {}
    for cell in cells:
        r = cell.recipe
        size = (
            r.max_steps,
            r.per_device_train_batch_size,
            r.gradient_accumulation_steps,
            r.max_length,
        )
        budgets.setdefault((cell.backbone.id, cell.task.id), set()).add(size)
    assert {len(sizes) for sizes in budgets.values()} == {1}


# A cell that stands for all of a method's: what a method is does not depend on the task.
GROUPS = ("gpt2_sa", "bert_sa", "t5_sum")
OTHERS = [method.id for method in METHODS if method not in (LORA, QLORA, SFT)]
PLACES = {
    method: next(f"{g}_{method}" for g in GROUPS if f"{g}_{method}" not in GRID.refused)
    for method in OTHERS
}


@pytest.mark.parametrize("method", PLACES)
def test_a_method_passes_the_audits_and_plain_lora_is_not_taken_for_it(method):
    evidence = trained_cell(PLACES[method], updates=6)
    assert failed(evidence) == {}
    assert "variant_applied" in {finding.name for finding in run_audits(evidence)}
    plain = QLORA if GRID.methods[method].quantization else LORA
    faults = failed(trained_cell(PLACES[method], built=plain))
    assert ("schedule_counts_updates" if method == "loraplus" else "variant_applied") in faults


# Definitions, on layers of two inputs and two outputs


def weights(*rows):
    return {"default": torch.tensor(rows)}


def matrix(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


BASE = matrix([3.0, 0.0], [0.0, 4.0])
LAYERS = {  # and what each adds to 3 and 8, for 1 and 2
    # scale 16 / 8: W + s B A is 4 times the unit matrix, whose norms of 4 become 8 and 4
    "dora": (
        {
            "lora_A": {"default": matrix([1.0, 0.0])},
            "lora_B": {"default": matrix([0.5], [0.0])},
            "lora_magnitude_vector": {"default": SimpleNamespace(weight=torch.tensor([8.0, 4.0]))},
        },
        [5.0, 0.0],
    ),
    # scale 16 / 12: Q x is 3 and 0, the first singular value 2, and P takes it to both outputs
    "adalora": (
        {
            "lora_A": weights([1.0, 1.0], [0.0, 0.0]),
            "lora_E": weights([2.0], [5.0]),
            "lora_B": weights([1.0, 0.0], [0.5, 0.0]),
        },
        [8.0, 4.0],
    ),
    "ia3": ({"ia3_l": weights([2.0], [0.5])}, [3.0, -4.0]),
    "qia3": ({"ia3_l": weights([0.0, 3.0])}, [-3.0, 16.0]),  # of a feed-forward layer
    # A x is 5 in the columns that this layer takes, scaled to 10
    "vera": (
        {
            "vera_A": weights([1.0, 2.0, 9.0]),
            "vera_B": weights([1.0], [3.0], [9.0]),
            "vera_lambda_d": weights(2.0),
            "vera_lambda_b": weights(1.0, 0.1),
        },
        [10.0, 3.0],
    ),
    # a quarter turn, of 1 and 2 to 2 and -1
    "oft": ({"oft_R": {"default": SimpleNamespace(weight=torch.tensor([[1.0]]))}}, [3.0, -12.0]),
}


@pytest.mark.parametrize("method", LAYERS)
def test_a_method_adds_what_its_paper_defines(method):
    tensors, expected = LAYERS[method]
    layer = SimpleNamespace(get_base_layer=lambda: BASE, **tensors)
    definition = GRID.methods[method]
    if method == "oft":
        definition = replace(definition, options={"oft_block_size": 2})
    cell = GRID.cell("bert_sa_lora", ZOO_PROFILE)
    with torch.no_grad():
        assert definition.contribution(
            layer, cell, torch.tensor([1.0, 2.0])
        ).tolist() == pytest.approx(expected)


def test_the_cut_of_ranks_is_asked_of_whole_trainings_alone():
    profile = replace(ZOO_PROFILE, changes={"per_device_train_batch_size": 4})
    trainer = cell_trainer(OPEN.cell("gpt2_sa_adalora", profile), train_rows("gpt2_sa_lora")[:8])
    trainer.run(lambda *state: None, first_updates=3)
    assert failed(get_evidence(trainer)) == {}


def test_of_measured_values_the_one_with_the_largest_share_of_its_limit_counts():
    fine = Measured(0.1, 10.0)
    close = Measured(0.9, 1.0)
    beyond = Measured(0.2, 0.1)
    assert closest_to_limit([fine, close]) is close
    assert closest_to_limit([close, beyond, fine]) is beyond
    assert not closest_to_limit([close, Measured(math.nan, 1.0)])
    assert closest_to_limit([Measured(0.0, 0.0), fine]) is fine
    assert not closest_to_limit([Measured(1e-9, 0.0), close])
