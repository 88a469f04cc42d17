"""How far rounding moves figures of the first updates, and what a change of arithmetic does: the evidence for `numerics.toml`.

Each quick cell trains its first ten updates twice. A start that is moved in the last digits must count as rounding; a change
of the arithmetic must not, and a change of later updates must part the curves of losses.
`pytest -m perturbed -n auto --benchmark-json=FILE` keeps what each run deviated by.
"""

from itertools import islice

import pytest
import torch
import transformers as hf

from fixtures.session import session_of
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.results.numerics import FINE, UPDATES, Pair, changes, load_tolerances, tolerance_of
from tunegrid.run.build import build, perturb
from tunegrid.run.meter import Meter
from tunegrid.run.probe import before_training
from tunegrid.run.training import Trainer

pytestmark = pytest.mark.perturbed


@pytest.fixture
def cell(request, cell_id):
    session = session_of(request.config)
    return session.grid.cell(cell_id, session.profile("quick"))


@pytest.fixture
def twin(cell, trainer, codec, tokenizer, features, device, metrics, splits):
    """The same training once more, over a model of its own, changed before anything is measured."""

    def changed(change):
        twin = Trainer(cell, build(cell, tokenizer, device), codec, features, Meter(device=device))
        change(twin)
        twin.start_from(before_training(twin, metrics, splits.test))
        return twin

    return changed


@pytest.fixture
def pair(cell, trainer, twin, benchmark):
    """Both courses as a pair; how far they lie apart is kept."""

    def compare(change, whole=False, draw=None):
        updates = trainer.total if whole else UPDATES
        before = first_updates(trainer, updates)
        after = benchmark.pedantic(lambda: first_updates(twin(change), updates, draw), rounds=1)
        kind = f"nf4 {before.precision}" if cell.quantization else before.precision
        pair = Pair(old=before, new=after, tolerance=tolerance_of(cell.id, kind, load_tolerances()), fine=kind == FINE)
        benchmark.group = "perturbed"
        benchmark.extra_info.update(of=cell.id, kind=kind, **pair.apart())
        return pair

    return compare


@pytest.fixture
def deviation(pair):
    """What changed first, if anything did."""
    return lambda change: list(changes(pair(change)))


def first_updates(trainer, updates, draw=None):
    """The first updates, as a record holds them; `draw` is called before each that comes after the tenth."""
    hf.set_seed(trainer.cell.profile.seed)
    trainer.model.train()
    for number, group in enumerate(islice(trainer.updates(0), updates)):
        if draw and number >= UPDATES:
            draw()
        trainer.update(group)
    return trainer.part()


@pytest.mark.parametrize("cell_id", STUDY_IDS)
@pytest.mark.parametrize("draw", [1, 2, 3])
def test_noise_in_the_last_digits_is_rounding(cell_id, draw, deviation):
    assert deviation(lambda trainer: perturb(trainer.model, draw)) == []


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_another_implementation_of_the_same_optimizer_is_rounding(cell_id, deviation):
    assert deviation(other_settings(fused=False, foreach=False)) == []


# Changes of arithmetic that leave scores as they are, or nearly


def other_settings(**settings):
    def change(trainer):
        for group in trainer.optimizer.optimizer.param_groups:
            group.update(settings)

    return change


def scaled_rate(trainer):
    """The schedule's rates are 2 % too high."""
    schedule = trainer.stepper.schedule
    schedule.base_lrs = [1.02 * rate for rate in schedule.base_lrs]


def no_dropout(trainer):
    """Adapters are trained without their dropout."""
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def missing_gradient(trainer):
    """The first trained tensor gets no gradient."""
    trainer.trained[0].register_hook(torch.zeros_like)


CHANGES = {
    "another second moment": ("optimizer", other_settings(betas=(0.9, 0.9))),
    "rates 2 % too high": ("optimizer", scaled_rate),
    "no gradient for one tensor": (("backward", "optimizer"), missing_gradient),  # LoRA's A has none at update 1
}


@pytest.mark.parametrize("cell_id", ["bert_qa_sft", "gpt2_qa_lora", "t5_sum_sft"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_arithmetic_is_changed(cell_id, change, deviation):
    stage, settings = CHANGES[change]
    assert deviation(settings)[0].startswith(stage)


@pytest.mark.parametrize("cell_id", ["gpt2_qa_lora", "bert_qa_qlora", "t5_qa_lora"])
def test_adapters_without_their_dropout_are_changed(cell_id, deviation):
    assert deviation(no_dropout)[0].startswith("random numbers: the first update draws others")


# What begins after the tenth update


@pytest.mark.parametrize("cell_id", ["gpt2_sa_lora", "t5_sum_lora", "t5_sum_qlora"])
def test_one_more_random_number_before_each_update_from_the_eleventh_on_parts_the_curves(cell_id, pair):
    """Other masks of dropout: no figure of the first ten updates shows them."""
    drawn = pair(lambda trainer: None, whole=True, draw=lambda: torch.rand(1))
    assert not list(changes(drawn))
    assert drawn.curves_part
