"""Instruments that train SFT, too: what lies between both, and what a cell learns from it."""

import math

import pytest
import torch
from torch import nn

from tunegrid.codecs.base import IGNORED
from tunegrid.instruments import distillation, interpolation
from tunegrid.tests.instruments.asking import asked_cell, values
from tunegrid.tests.small import cell_of, codec_for, model_of, silent, train_rows, trainer_of

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4}


def short_beside_sft(cell_id, monkeypatch):
    """A cell after two updates, whose SFT has two, too."""
    asked = asked_cell(cell_of(cell_id, **SHORT))
    monkeypatch.setattr(type(asked), "sft", cell_of(f"{cell_id.rsplit('_', 1)[0]}_sft", **SHORT))
    asked.trainer.run(silent())
    return asked


def test_the_line_from_a_packed_adapter_to_sft_begins_and_ends_with_both(monkeypatch):
    asked = short_beside_sft("gpt2_sa_qlora", monkeypatch)
    monkeypatch.setattr(interpolation, "SHARES", (0.0, 0.5, 1.0))
    interpolation.INSTRUMENT.before(asked)
    with torch.no_grad():
        figures = interpolation.INSTRUMENT.measure(asked, None)
    merged = interpolation.merged(asked)
    assert values(figures, "points", "0.0") == asked.score(asked.test_rows, merged).examples["accuracy"]
    assert values(figures, "points", "1.0") == asked.score(asked.test_rows, asked.other(asked.sft)).examples["accuracy"]
    assert len(values(figures, "gain", "best place")) == 8


def test_the_barrier_is_the_deepest_fall_below_the_line_and_the_gain_is_over_the_better_end(monkeypatch):
    # validation points of rows along the line: 60, 50, 70, 30, 90, 80; the line is 60, 64, 68, 72, 76, 80, so 42 below at 0.6
    by_share = dict(zip(interpolation.SHARES, (60.0, 50.0, 70.0, 30.0, 90.0, 80.0), strict=True))
    asked = asked_cell(cell_of("bert_qa_lora"))
    at = []
    monkeypatch.setattr(interpolation, "merged", lambda cell: nn.Linear(1, 1))
    monkeypatch.setattr(interpolation, "between", lambda first, second, share: at.append(share) or dict(first))
    monkeypatch.setattr(type(asked), "other", lambda self, cell: nn.Linear(1, 1))
    score = lambda self, rows, model: type("Scored", (), {"examples": {"f1": [by_share[at[-1]]] * len(rows)}})  # noqa: E731
    monkeypatch.setattr(type(asked), "score", score)
    figures = interpolation.INSTRUMENT.measure(asked, None)
    assert values(figures, "barrier") == [42.0]
    assert values(figures, "gain", "best place") == [10.0] * 8  # 90 at 0.8, 80 at the end


def test_the_loss_of_a_student_by_hand():
    class Told:
        def __init__(self):
            self.criterion = None

        def loss(self, model, batch):
            return self.criterion(model(batch["input_ids"]), batch["labels"])

    codec = Told()
    distillation.learn_from(lambda ids: torch.tensor([[2 * math.log(3.0), 0.0], [9.0, 9.0]]), codec)
    logits = torch.zeros(2, 2, requires_grad=True)
    batch = {"input_ids": None, "labels": torch.tensor([0, IGNORED])}
    loss = codec.loss(lambda ids: logits, batch)
    # the task's is ln 2; at temperature 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2, and 2^2 x KL is
    apart = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * apart, rel=1e-6)
    loss.backward()
    assert logits.grad[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("cell_id", ["bert_qa_lora", "t5_sum_lora"])
def test_a_teacher_who_says_nothing_changes_no_bit_and_another_changes_the_loss(cell_id, monkeypatch):
    def losses(alpha):
        codec = codec_for(cell_id)
        if alpha is not None:
            monkeypatch.setattr(distillation, "ALPHA", alpha)
            distillation.learn_from(model_of(cell_id.rsplit("_", 1)[0] + "_sft").eval(), codec)
        trainer = trainer_of(cell_id, train_rows(cell_id)[:8], max_steps=2, per_device_train_batch_size=4)
        trainer.codec = codec
        trainer.run(silent())
        return trainer.log.losses

    alone = losses(None)
    assert losses(0.0) == alone != losses(0.5)


def test_a_taught_cell_is_scored_beside_itself_and_its_teacher(monkeypatch):
    asked = short_beside_sft("bert_qa_lora", monkeypatch)
    vars(asked)["evaluation"] = asked.score(asked.test_rows)
    distillation.INSTRUMENT.before(asked)
    figures = distillation.INSTRUMENT.measure(asked, None)
    parts = {part: values(figures, "points", part) for part in ("alone", "taught", "teacher")}
    assert parts["alone"] == asked.evaluation.examples["f1"]
    assert values(figures, "gain", "taught") == [new - old for old, new in zip(parts["alone"], parts["taught"], strict=True)]
