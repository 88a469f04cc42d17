"""Methods beyond the study's three: each is a few lines, trains in the same trainer and is held to the same audits."""

from dataclasses import replace
from itertools import product

import pytest

from tunegrid.audits import Evidence, run_audits
from tunegrid.grid.methods import LORA, QLORA, SFT
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import METHODS, zoo
from tunegrid.record.checks import NEED_LENGTH
from tunegrid.tests.small import cell_trainer, get_evidence, read_rows, train_rows

REVIEWS, QUESTIONS, NEWS = (read_rows(f"{name}/train")[:16] for name in ("amazon_polarity", "squad", "cnn_dailymail"))


# The zoo: every method is in every place or refused with a reason that still holds, and none is taken for plain LoRA.

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
    return {f.name: f.detail for f in run_audits(evidence) if not f.passed and f.name not in NEED_LENGTH}


def test_every_combination_is_a_cell_or_refused_and_cells_of_a_backbone_and_task_have_one_budget():
    everything = {f"{b}_{t}_{m.id}" for b, t, m in product(GRID.backbones, GRID.tasks, METHODS)}
    cells, refused = GRID.cells(ZOO_PROFILE), set(GRID.unsupported(ZOO_PROFILE))
    assert {cell.id for cell in cells} | refused == everything
    assert len(cells) + len(refused) == len(everything)
    budgets = {}
    for cell in cells:
        r = cell.recipe
        size = (r.max_steps, r.per_device_train_batch_size, r.gradient_accumulation_steps, r.max_length)
        budgets.setdefault((cell.backbone.id, cell.task.id), set()).add(size)
    assert {len(sizes) for sizes in budgets.values()} == {1}


# A cell that stands for all of a method's: what a method is does not depend on the task.
GROUPS = ("gpt2_sa", "bert_sa", "t5_sum")
OTHERS = [method.id for method in METHODS if method not in (LORA, QLORA, SFT)]
PLACES = {method: next(f"{g}_{method}" for g in GROUPS if f"{g}_{method}" not in GRID.refused) for method in OTHERS}


@pytest.mark.parametrize("method", PLACES)
def test_a_method_passes_the_audits_and_plain_lora_is_not_taken_for_it(method):
    evidence = trained_cell(PLACES[method], updates=6)
    assert failed(evidence) == {}
    assert "variant_applied" in {finding.name for finding in run_audits(evidence)}
    plain = QLORA if GRID.methods[method].quantization else LORA
    faults = failed(trained_cell(PLACES[method], built=plain))
    assert ("schedule_counts_updates" if method == "loraplus" else "variant_applied") in faults
