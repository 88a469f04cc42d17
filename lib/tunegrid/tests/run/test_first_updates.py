"""A training that pauses after its first updates is the beginning of the whole one, and goes on to its end."""

import pytest
import torch

from tunegrid.run.probe import prediction_digest
from tunegrid.tests.small import silent, train_rows, trainer_of

CELL = "bert_sa_lora"  # with dropout, and a schedule that warms up
EPOCHS = {"num_train_epochs": 2, "max_steps": 0}


def trained(*pauses, **changes):
    """A trainer that was asked for its first updates so many times, and the records of these."""
    trainer = trainer_of(CELL, train_rows(CELL)[:48], **changes)
    return trainer, [trainer.run(silent(), score, first_updates=count) for count in pauses]


def score():
    return 50.0 + torch.rand(1).item(), []  # a validation may draw random numbers


@pytest.mark.parametrize("count", [1, 3, 4], ids=["within the warm-up", "at an epoch's end", "in the second epoch"])
def test_first_updates_are_those_of_a_whole_run(count):
    whole, _ = trained(**EPOCHS)
    all_of_it = whole.run(silent(), score)
    assert all_of_it.updates == 6
    paused, [first] = trained(count, **EPOCHS)
    assert paused.paused
    assert first.losses == all_of_it.losses[:count]
    assert first.order == all_of_it.order  # of the rows of the whole run, as planned
    assert paused.log.learning_rates == whole.log.learning_rates[:count]


def test_first_updates_may_be_all_and_a_loss_that_is_no_number_stops_before_the_pause():
    trainer, [first] = trained(100, max_steps=2)
    assert (first.updates, trainer.paused) == (2, True)
    trainer = trainer_of(CELL, train_rows(CELL)[:48], max_steps=6)
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).fill_(float("nan"))
    assert trainer.run(silent(), first_updates=2).stopped == "loss is nan at update 1 of 6"
    assert not trainer.paused


@pytest.mark.parametrize("cell", ["bert_qa_sft", "gpt2_qa_sft"])
def test_what_the_untrained_model_predicts_depends_on_model_and_rows_alone(cell):
    rows = train_rows(cell)
    trainer = trainer_of(cell, rows[:16], max_steps=2)
    before = prediction_digest(trainer, rows[:4])
    assert before == prediction_digest(trainer, rows[:4])
    assert before != prediction_digest(trainer, rows[4:8])
