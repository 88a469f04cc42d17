"""How far rounding moves the first losses, and what a change of arithmetic does to them: the evidence for `numerics.toml`.

Each quick cell trains its first ten updates twice. A start that is moved in the last digits must count as rounding; a change
of the arithmetic must not. `pytest -m perturbed -n auto --benchmark-json=FILE` keeps what each run deviated by.
"""

from itertools import islice

import pytest
import torch
import transformers as hf

from fixtures.session import session_of
from lib.grid.cells import STUDY_IDS
from lib.results.judgements import Verdict
from lib.results.numerics import curves, load_tolerances
from lib.run.build import build, perturb
from lib.run.meter import Meter
from lib.run.training import Trainer

pytestmark = pytest.mark.perturbed

UPDATES = 10


@pytest.fixture
def cell(request, cell_id):
    session = session_of(request.config)
    return session.grid.cell(cell_id, session.profile("quick"))


@pytest.fixture
def twin(cell, trainer, codec, tokenizer, features, device):
    """The same training once more, over a model of its own."""
    return Trainer(cell, build(cell, tokenizer, device), codec, features, Meter(device=device))


@pytest.fixture
def deviation(trainer, twin, benchmark):
    """Losses of both, and how far they lie apart at the first update and at later ones."""

    def compare(change):
        before = first_losses(trainer)
        change(twin)
        after = benchmark.pedantic(first_losses, args=(twin,), rounds=1)
        gaps = [abs(a - b) for a, b in zip(before, after, strict=True)]
        benchmark.group = "perturbed"
        benchmark.extra_info.update(of=trainer.cell.id, first=gaps[0], later=max(gaps[1:]))
        tolerances = load_tolerances()["nf4 fp32" if trainer.cell.quantization else "fp32"]
        return curves(before, after, tolerances, UPDATES)

    return compare


def first_losses(trainer):
    hf.set_seed(trainer.cell.profile.seed)
    trainer.model.train()
    return [float(trainer.update(group)) for group in islice(trainer.updates(0), UPDATES)]


@pytest.mark.parametrize("cell_id", STUDY_IDS)
@pytest.mark.parametrize("draw", [1, 2, 3])
def test_noise_in_the_last_digits_is_rounding(cell_id, draw, deviation):
    verdict, detail = deviation(lambda trainer: perturb(trainer.model, draw))
    assert verdict in (Verdict.EQUAL, Verdict.ROUNDING), detail


# Changes of arithmetic that leave scores as they are, or nearly


def other_settings(**settings):
    def change(trainer):
        for group in trainer.optimizer.optimizer.param_groups:
            group.update(settings)

    return change


def scaled_rate(trainer):
    """The schedule's rates are 2 % too high."""
    trainer.schedule.base_lrs = [1.02 * rate for rate in trainer.schedule.base_lrs]


def no_dropout(trainer):
    """Adapters are trained without their dropout."""
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def missing_gradient(trainer):
    """The first trained tensor gets no gradient."""
    trainer.trained[0].register_hook(torch.zeros_like)


CHANGES = {
    "no bias correction of the second moment": other_settings(betas=(0.9, 0.9)),
    "rates 2 % too high": scaled_rate,
    "no gradient for one tensor": missing_gradient,
}


@pytest.mark.parametrize("cell_id", ["bert_qa_sft", "gpt2_qa_lora", "t5_sum_sft"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_arithmetic_is_changed(cell_id, change, deviation):
    verdict, detail = deviation(CHANGES[change])
    assert verdict is Verdict.CHANGED, detail


# Over NF4 the curve cannot tell it from rounding (1e-2 nats in bert_qa_qlora): the tolerance there is as wide.
@pytest.mark.parametrize("cell_id", ["gpt2_qa_lora", "bert_qa_lora", "t5_qa_lora"])
def test_adapters_without_their_dropout_are_changed(cell_id, deviation):
    verdict, detail = deviation(no_dropout)
    assert verdict is Verdict.CHANGED, detail
