"""The zoo: every method is in every place or refused with a reason that still holds, and none is taken for plain LoRA."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from tunegrid.codecs import codec_of
from tunegrid.grid.methods import LORA, QLORA, SFT
from tunegrid.grid.profiles import FULL_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import METHODS, NEW_PARTS, zoo
from tunegrid.run.audits import OF_LEARNING, Evidence, audited
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.meter import Meter
from tunegrid.run.training import Trainer
from tunegrid.tests.sessions import collect
from tunegrid.tests.small import CPU, silent, train_rows

ZOO = zoo()
OPEN = zoo()
OPEN.refused.clear()
LEARNING = {audit.__name__ for audit in OF_LEARNING}
CELLS = ZOO.ids(ZOO_PROFILE)
PLAIN = {method.id for method in (LORA, QLORA, SFT)}


@cache
def tokenizer_of(backbone: str, task: str):
    return load_tokenizer(ZOO.cell(f"{backbone}_{task}_lora", ZOO_PROFILE))


def trained(cell_id: str, built=None, updates: int = 3, rows: int = 8) -> Evidence:
    """A cell of the zoo after a few updates; `built` is the method that really trained."""
    torch.set_num_threads(1)
    backbone, task, _ = cell_id.split("_")
    profile = replace(ZOO_PROFILE, max_steps=updates, changes={"per_device_train_batch_size": 4})
    cell = OPEN.cell(cell_id, profile)
    tokenizer = tokenizer_of(backbone, task)
    codec = codec_of(cell, tokenizer)
    model = build(replace(cell, method=built or cell.method), tokenizer, CPU)
    features = codec.encode(train_rows(cell_id)[:rows], training=True)
    trainer = Trainer(replace(cell, method=built or cell.method), model, codec, features, Meter(device=CPU))
    trainer.run(silent())
    return Evidence(cell=cell, codec=codec, trainer=trainer)


def failed(evidence: Evidence) -> dict[str, str]:
    return {f.name: f.detail for f in audited(evidence) if not f.passed and f.name not in LEARNING}


def test_every_combination_is_a_cell_or_refused():
    everything = {f"{b}_{t}_{m.id}" for b, t, m in product(ZOO.backbones, ZOO.tasks, METHODS)}
    for profile in (ZOO_PROFILE, FULL_PROFILE):
        cells, refused = set(ZOO.ids(profile)), set(ZOO.unsupported(profile))
        assert cells | refused == everything
        assert not cells & refused
    assert len(ZOO.ids(ZOO_PROFILE)) == 144


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


def listed(*options):
    return collect("--list-cells", *options)


def test_the_zoo_is_listed_with_what_is_refused_and_why():
    lines = listed("-m", "zoo").stdout.splitlines()
    assert lines[0] == "zoo:"
    assert ["gpt2_sa_vera", "50"] in [line.split()[:2] for line in lines]
    assert "not supported: t5_sum_bitfit, t5_qa_bitfit, t5_sa_bitfit: T5 has no biases" in lines


def test_a_refused_cell_is_answered_with_its_reason():
    refusal = listed("-m", "zoo", "--cells", "gpt2_sa_oft")
    assert refusal.returncode
    assert "gpt2_sa_oft: PEFT rotates layers of torch only, and GPT-2's are transformers' Conv1D" in refusal.stderr


def test_methods_of_the_zoo_are_listed_at_full_size():
    """AdaLoRA plans its cuts over the updates, of which an epoch's number is not known before the rows are."""
    listing = listed("-m", "full and zoo")
    assert not listing.returncode, listing.stderr
    assert "t5_sa_adalora" in {line.split()[0] for line in listing.stdout.splitlines() if line}


def test_the_studys_cells_are_not_the_zoos():
    refusal = listed("-m", "quick", "--cells", "bert_sa_dora")
    assert refusal.returncode
    assert "unknown cell 'bert_sa_dora'" in refusal.stderr
    names = [line.split()[0] for line in listed("-m", "footprint and zoo").stdout.splitlines() if line]
    assert "bert_sa_dora" in names
    assert "bert_sa_lora" not in names  # the study's has this name at true size
