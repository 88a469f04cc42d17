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
from tunegrid.tests.small import cell_trainer, get_evidence, silent, train_rows

# The zoo: every combination is a cell or rejected, and no method is taken for plain LoRA.

GRID = zoo()


def trained_cell(cell_id: str, updates: int, trained_method=None) -> Evidence:
    """A cell of the zoo after a few updates, which another method may really have trained."""
    profile = replace(ZOO_PROFILE, max_steps=updates, changes={"per_device_train_batch_size": 4})
    cell = GRID.cell(cell_id, profile)
    built_cell = replace(cell, method=trained_method or cell.method)
    trainer = cell_trainer(built_cell, train_rows(cell_id)[:8])
    return replace(get_evidence(trainer, run=True), cell=cell)


def failed(evidence: Evidence) -> dict[str, str]:
    return {
        f.name: f.detail for f in run_audits(evidence) if not f.passed and f.name not in NEED_LENGTH
    }


def test_every_combination_is_a_cell_or_rejected_and_cells_of_a_backbone_and_task_have_one_budget():
    combinations = product(GRID.backbones, GRID.tasks, GRID.methods)
    everything = ["_".join(ids) for ids in combinations]
    known = [*GRID.ids(ZOO_PROFILE), *GRID.unsupported(ZOO_PROFILE)]
    assert sorted(known) == sorted(everything)
    budgets = {}
    for cell in GRID.cells(ZOO_PROFILE):
        recipe = cell.recipe
        budget = (
            recipe.max_steps,
            recipe.per_device_train_batch_size,
            recipe.gradient_accumulation_steps,
            recipe.max_length,
        )
        assert budgets.setdefault((cell.backbone.id, cell.task.id), budget) == budget


def example_cell(method: str) -> str:
    """A cell that stands for all of a method's: what a method is does not depend on the task."""
    cell_ids = [f"{pair}_{method}" for pair in ("gpt2_sa", "bert_sa", "t5_sum")]
    return next(cell_id for cell_id in cell_ids if cell_id not in GRID.refused)


@pytest.mark.parametrize("method", [m.id for m in METHODS if m not in (LORA, QLORA, SFT)])
def test_a_method_passes_the_audits_and_plain_lora_is_not_taken_for_it(method):
    cell_id = example_cell(method)
    evidence = trained_cell(cell_id, updates=6)
    assert failed(evidence) == {}
    assert "variant_applied" in {finding.name for finding in run_audits(evidence)}
    plain = QLORA if GRID.methods[method].quantization else LORA
    faults = failed(trained_cell(cell_id, updates=3, trained_method=plain))
    assert ("schedule_counts_updates" if method == "loraplus" else "variant_applied") in faults


# Definitions, on layers of two inputs and two outputs


def weights(*rows):
    return {"default": torch.tensor(rows)}


def matrix(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


BASE = matrix([3.0, 0.0], [0.0, 4.0])


# Each layer adds to 3 and 8, its base's outputs for 1 and 2.
@pytest.mark.parametrize(
    ("method", "tensors", "added"),
    [
        (  # scale 16 / 8: W + s B A is 4 times the unit matrix, whose norms of 4 become 8 and 4
            "dora",
            {
                "lora_A": {"default": matrix([1.0, 0.0])},
                "lora_B": {"default": matrix([0.5], [0.0])},
                "lora_magnitude_vector": {
                    "default": SimpleNamespace(weight=torch.tensor([8.0, 4.0]))
                },
            },
            [5.0, 0.0],
        ),
        (  # scale 16 / 12: Q x is 3 and 0, the first singular value 2, and P takes it to both
            "adalora",
            {
                "lora_A": weights([1.0, 1.0], [0.0, 0.0]),
                "lora_E": weights([2.0], [5.0]),
                "lora_B": weights([1.0, 0.0], [0.5, 0.0]),
            },
            [8.0, 4.0],
        ),
        ("ia3", {"ia3_l": weights([2.0], [0.5])}, [3.0, -4.0]),
        ("qia3", {"ia3_l": weights([0.0, 3.0])}, [-3.0, 16.0]),  # of a feed-forward layer
        (  # A x is 5 in the columns that this layer takes, scaled to 10
            "vera",
            {
                "vera_A": weights([1.0, 2.0, 9.0]),
                "vera_B": weights([1.0], [3.0], [9.0]),
                "vera_lambda_d": weights(2.0),
                "vera_lambda_b": weights(1.0, 0.1),
            },
            [10.0, 3.0],
        ),
        (  # a quarter turn, of 1 and 2 to 2 and -1
            "oft",
            {"oft_R": {"default": SimpleNamespace(weight=torch.tensor([[1.0]]))}},
            [3.0, -12.0],
        ),
    ],
)
def test_a_method_adds_what_its_paper_defines(method, tensors, added):
    layer = SimpleNamespace(get_base_layer=lambda: BASE, **tensors)
    definition = GRID.methods[method]
    if method == "oft":
        definition = replace(definition, options={"oft_block_size": 2})
    cell = GRID.cell("bert_sa_lora", ZOO_PROFILE)
    with torch.no_grad():
        contribution = definition.contribution(layer, cell, torch.tensor([1.0, 2.0]))
    assert contribution.tolist() == pytest.approx(added)


def test_the_cut_of_ranks_is_asked_of_whole_trainings_alone():
    profile = replace(ZOO_PROFILE, changes={"per_device_train_batch_size": 4})
    trainer = cell_trainer(GRID.cell("gpt2_sa_adalora", profile), train_rows("gpt2_sa_lora")[:8])
    trainer.run(silent(), first_updates=3)
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
