"""The zoo: every method is in every place or refused with a reason that still holds, and none is taken for plain LoRA."""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch

from tunegrid.audits import Evidence, audited
from tunegrid.grid.methods import LORA, QLORA, SFT
from tunegrid.grid.recipes import FULL_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import METHODS, NEW_PARTS, zoo
from tunegrid.record.checks import NEED_LENGTH
from tunegrid.tests.sessions import collect
from tunegrid.tests.small import CPU, evidence_from, train_rows, trainer_for

ZOO = zoo()
OPEN = zoo()
OPEN.refused.clear()
CELLS = ZOO.ids(ZOO_PROFILE)
PLAIN = {method.id for method in (LORA, QLORA, SFT)}


def trained(cell_id: str, built=None, updates: int = 3, rows: int = 8) -> Evidence:
    """A cell of the zoo after a few updates; `built` is the method that really trained."""
    profile = replace(ZOO_PROFILE, max_steps=updates, changes={"per_device_train_batch_size": 4})
    cell = OPEN.cell(cell_id, profile)
    trainer = trainer_for(replace(cell, method=built or cell.method), train_rows(cell_id)[:rows])
    return replace(evidence_from(trainer, run=True), cell=cell)


def failed(evidence: Evidence) -> dict[str, str]:
    return {f.name: f.detail for f in audited(evidence) if not f.passed and f.name not in NEED_LENGTH}


def test_every_combination_is_a_cell_or_refused():
    everything = {f"{b}_{t}_{m.id}" for b, t, m in product(ZOO.backbones, ZOO.tasks, METHODS)}
    for profile in (ZOO_PROFILE, FULL_PROFILE):
        cells, refused = set(ZOO.ids(profile)), set(ZOO.unsupported(profile))
        assert cells | refused == everything
        assert not cells & refused


def test_cells_of_a_backbone_and_task_have_one_budget():
    cells = ZOO.cells(ZOO_PROFILE)
    for backbone, task in product(ZOO.backbones, ZOO.tasks):
        recipes = [cell.recipe for cell in cells if (cell.backbone.id, cell.task.id) == (backbone, task)]
        budgets = {(r.max_steps, r.per_device_train_batch_size, r.gradient_accumulation_steps, r.max_length) for r in recipes}
        assert len(budgets) == 1


def cell_of_method(method: str) -> str | None:
    """A cell that stands for all of a method's: what a method is does not depend on the task."""
    return next((f"{group}_{method}" for group in ("gpt2_sa", "bert_sa", "t5_sum") if f"{group}_{method}" in CELLS), None)


PLACES = {method.id: cell_of_method(method.id) for method in METHODS if method.id not in PLAIN and cell_of_method(method.id)}


@pytest.mark.parametrize("method", PLACES)
def test_a_method_passes_the_audits_and_says_what_it_is(method):
    evidence = trained(PLACES[method], updates=6)
    assert failed(evidence) == {}
    assert "variant_applied" in {finding.name for finding in audited(evidence)}


@pytest.mark.parametrize("method", PLACES)
def test_plain_lora_is_not_taken_for_a_method_of_the_zoo(method):
    quantized = ZOO.methods[method].quantization is not None
    assert "variant_applied" in failed(trained(PLACES[method], built=QLORA if quantized else LORA))


def trouble(cell_id: str) -> str | None:
    """What goes wrong where a refused cell is trained and asked all the same; None where nothing does."""
    try:
        evidence = trained(cell_id)
        features = evidence.codec.encode(train_rows(cell_id)[:2], training=False)
        evidence.model.eval()
        with torch.inference_mode():
            evidence.codec.predict(evidence.model, features, CPU)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "; ".join(failed(evidence)) or None


@pytest.mark.parametrize("cell_id", sorted(name for name, reason in ZOO.refused.items() if reason != NEW_PARTS))
def test_what_is_refused_still_does_not_train(cell_id):
    assert trouble(cell_id), f"{cell_id} trains now: take it out of REFUSED in lib/tunegrid/grid/zoo.py"


# The command line


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (
            "-m zoo",
            0,
            r"(?s)^zoo:\n.*^gpt2_sa_vera +16 x 1 .*^not supported: t5_sum_bitfit, t5_qa_bitfit, t5_sa_bitfit: T5",
        ),
        ("-m zoo --cells gpt2_sa_oft", 4, "gpt2_sa_oft: PEFT rotates layers of torch only, and GPT-2's are"),
        # AdaLoRA plans its cuts over the updates, of which an epoch's number is not known before the rows are.
        ("-m full and zoo", 0, "^t5_sa_adalora "),
        ("-m quick --cells bert_sa_dora", 4, "unknown cell 'bert_sa_dora'"),
        ("-m footprint and zoo", 0, r"(?s)\A(?!.*^bert_sa_lora ).*^bert_sa_dora "),  # the study's has this name at true size
    ],
)
def test_cells_are_listed_or_refused_with_the_reason(options, code, words):
    mark, *cells = options.removeprefix("-m ").split(" --cells ")
    answer = collect("--list-cells", "-m", mark, *(("--cells", *cells) if cells else ()))
    assert answer.returncode == code
    assert re.search(words, answer.stderr if code else answer.stdout, re.MULTILINE)
