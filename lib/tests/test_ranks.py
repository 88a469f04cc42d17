"""One cell on several ranks is the cell on one process: its losses, its rows, its weights."""

from dataclasses import replace

import pytest
import torch

from lib.grid.cells import study
from lib.grid.profiles import ZOO_PROFILE
from lib.grid.zoo import zoo
from lib.run.audits import Evidence
from lib.run.audits.ranks import ranks_end_alike, ranks_train_as_one
from lib.run.evaluation import evaluate
from lib.run.fingerprints import model_marks
from lib.run.metrics import Metrics
from lib.run.ranks import ALONE
from lib.tests.ranked import on_ranks
from lib.tests.small import CPU, codec_for, model_of, rows_of, silent, still, trainer_for, trainer_of

ROWS = {"sa": "amazon_polarity/train", "qa": "squad/train", "sum": "cnn_dailymail/train"}
HEADS = [cell_id for cell_id in study().recipes if cell_id.endswith("_sft")]
METHODS = sorted({cell_id.split("_")[2] for cell_id in zoo().ids(ZOO_PROFILE)} - {"sft"})
CUT = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 3}  # updates of 6, 6 and 2 rows


def course_of(trainer):
    training = still(trainer).run(silent())
    marks = {name: mark for name, mark in model_marks(trainer.model).items() if trainer.parameters[name].requires_grad}
    return training, marks


def both(ranks, make):
    """A course on all ranks and, on the first, the one of a process alone; the weights they end with."""
    return course_of(make(ranks)), course_of(make(ALONE)) if ranks.rank == 0 else None


def of_study(cell_id, count, changes):
    rows = rows_of(ROWS[cell_id.split("_")[1]])[:count]
    return lambda ranks: trainer_of(cell_id, rows, ranks=ranks, **changes)


def of_zoo(method):
    """The method on GPT-2 and reviews, or where it has no cell there, on another."""
    ids = zoo().ids(ZOO_PROFILE)
    cell_id = next(cell_id for cell_id in (f"gpt2_sa_{method}", f"bert_sum_{method}", f"t5_sum_{method}") if cell_id in ids)
    cell = zoo().cell(cell_id, replace(ZOO_PROFILE, max_steps=3, changes=CUT))
    return lambda ranks: trainer_for(cell, rows_of(ROWS[cell_id.split("_")[1]])[:14], ranks=ranks)


def study_on(ranks, cell_id, count, changes):
    return both(ranks, of_study(cell_id, count, changes))


def zoo_on(ranks, method):
    return both(ranks, of_zoo(method))


def hold_to_one(answers):
    ((ours, weights), (alone, _)), *others = answers
    assert ours.losses == pytest.approx(alone.losses, abs=1e-4)
    assert ours.order == alone.order
    assert ours.gradient_norms == pytest.approx(alone.gradient_norms, rel=1e-3)
    assert all(other == weights for (_, other), _ in others)


@pytest.mark.parametrize("cell_id", HEADS)
def test_every_head_trains_on_two_ranks_as_on_one(cell_id):
    hold_to_one(on_ranks(2, study_on, cell_id, 14, CUT))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_two_ranks_as_on_one(method):
    hold_to_one(on_ranks(2, zoo_on, method))
