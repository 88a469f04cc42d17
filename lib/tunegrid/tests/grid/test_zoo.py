"""The zoo: every method is in every place or refused with a reason that still holds, and none is taken for plain LoRA."""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch

from tunegrid.audits import Evidence, audited
from tunegrid.grid.methods import LORA, QLORA, SFT
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import METHODS, NEW_PARTS, READ_AS_TEXT, zoo
from tunegrid.record.checks import NEED_LENGTH
from tunegrid.tests.sessions import answers_to
from tunegrid.tests.small import CPU, evidence_from, train_rows, trainer_for

ZOO = zoo()
OPEN = zoo()
OPEN.refused.clear()


def trained(cell_id: str, built=None, updates: int = 3, rows: int = 8) -> Evidence:
    """A cell of the zoo after a few updates; `built` is the method that really trained."""
    profile = replace(ZOO_PROFILE, max_steps=updates, changes={"per_device_train_batch_size": 4})
    cell = OPEN.cell(cell_id, profile)
    trainer = trainer_for(replace(cell, method=built or cell.method), train_rows(cell_id)[:rows])
    return replace(evidence_from(trainer, run=True), cell=cell)


def failed(evidence: Evidence) -> dict[str, str]:
    return {f.name: f.detail for f in audited(evidence) if not f.passed and f.name not in NEED_LENGTH}


def test_every_combination_is_a_cell_or_refused_and_cells_of_a_backbone_and_task_have_one_budget():
    everything = {f"{b}_{t}_{m.id}" for b, t, m in product(ZOO.backbones, ZOO.tasks, METHODS)}
    cells, refused = ZOO.cells(ZOO_PROFILE), set(ZOO.unsupported(ZOO_PROFILE))
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
PLACES = {method: next(f"{g}_{method}" for g in GROUPS if f"{g}_{method}" not in ZOO.refused) for method in OTHERS}


@pytest.mark.parametrize("method", PLACES)
def test_a_method_passes_the_audits_and_plain_lora_is_not_taken_for_it(method):
    evidence = trained(PLACES[method], updates=6)
    assert failed(evidence) == {}
    assert "variant_applied" in {finding.name for finding in audited(evidence)}
    plain = QLORA if ZOO.methods[method].quantization else LORA
    assert "variant_applied" in failed(trained(PLACES[method], built=plain))


def trouble(cell_id: str) -> str | None:
    """What goes wrong if a refused cell is trained and asked all the same; None if nothing does."""
    try:
        evidence = trained(cell_id)
        features = evidence.codec.encode(train_rows(cell_id)[:2], training=False)
        evidence.model.eval()
        with torch.inference_mode():
            evidence.codec.predict(evidence.model, features, CPU)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "; ".join(failed(evidence)) or None


@pytest.mark.parametrize("cell_id", sorted(id for id, why in ZOO.refused.items() if why not in (NEW_PARTS, READ_AS_TEXT)))
def test_what_is_refused_still_does_not_train(cell_id):
    assert trouble(cell_id), f"{cell_id} trains now: take it out of REFUSED in lib/tunegrid/grid/zoo.py"


def test_cells_are_listed_or_refused_with_the_reason():
    expected = {
        ("-m", "zoo"): (0, r"(?s)^zoo:\n.*^gpt2_sa_vera +16 x 1 .*^not supported: t5_sum_bitfit, t5_qa_bitfit, t5_sa_bitfit: "),
        ("-m", "zoo", "--cells=gpt2_sa_oft"): (4, "gpt2_sa_oft: PEFT rotates layers of torch only"),
        ("-m", "full and zoo"): (4, "the zoo has micro cells only"),
        ("-m", "quick", "--cells=bert_sa_dora"): (4, "unknown cell 'bert_sa_dora'"),
    }
    answers = answers_to(["--list-cells", *options] for options in expected)
    for answer, (code, words) in zip(answers, expected.values(), strict=True):
        assert answer.code == code
        assert re.search(words, answer.err if code else answer.out, re.MULTILINE)
