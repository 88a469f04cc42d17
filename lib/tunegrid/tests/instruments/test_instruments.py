"""Instruments by hand: what lies between an adapter and SFT, distillation, forgetting, and
calibration.
"""

import math
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from torch import nn

from tunegrid.codecs.base import IGNORED
from tunegrid.grid.backbones import Objective
from tunegrid.instruments import NotAskedError, distillation, interpolation
from tunegrid.instruments.calibration import BINS, confidences, ece, fit_temperature, nll
from tunegrid.instruments.forgetting import HIDE, INSTRUMENT, LOADERS, task_texts, text_losses
from tunegrid.tests.instruments.asking import asked_cell, values
from tunegrid.tests.small import CPU, get_codec, get_tokenizer, quick_cell, silent


def test_the_line_from_a_packed_adapter_to_sft_begins_and_ends_with_both(monkeypatch):
    short = {"max_steps": 2, "per_device_train_batch_size": 4}
    asked = asked_cell(quick_cell("gpt2_sa_qlora", **short))
    monkeypatch.setattr(type(asked), "sft", quick_cell("gpt2_sa_sft", **short))
    asked.trainer.run(silent())
    monkeypatch.setattr(interpolation, "SHARES", (0.0, 0.5, 1.0))
    interpolation.INSTRUMENT.before(asked)
    with torch.no_grad():
        figures = interpolation.INSTRUMENT.measure(asked, None)
    ends = {"0.0": interpolation.merged_model(asked), "1.0": asked.train_other(asked.sft)}
    for share, model in ends.items():
        points = asked.score(asked.test_rows, model).examples["accuracy"]
        assert values(figures, "points", share) == points
    assert len(values(figures, "gain", "best place")) == 8


def test_the_barrier_is_the_deepest_fall_below_the_line_and_the_gain_is_over_the_better_end(
    monkeypatch,
):
    # The line from end to end is 60, 64, 68, 72, 76, 80, so 0.6 lies 42 below it
    points = {0.0: 60.0, 0.2: 50.0, 0.4: 70.0, 0.6: 30.0, 0.8: 90.0, 1.0: 80.0}
    shares = []

    def interpolate(first, second, share):
        shares.append(share)
        return first

    def score(model, rows):
        return SimpleNamespace(examples={"f1": [points[shares[-1]]] * len(rows)})

    asked = asked_cell(quick_cell("bert_qa_lora"), score=score)
    monkeypatch.setattr(interpolation, "merged_model", lambda cell: nn.Linear(1, 1))
    monkeypatch.setattr(interpolation, "interpolate", interpolate)
    monkeypatch.setattr(type(asked), "train_other", lambda self, cell: nn.Linear(1, 1))
    figures = interpolation.INSTRUMENT.measure(asked, None)
    assert values(figures, "barrier") == [42.0]
    assert values(figures, "gain", "best place") == [10.0] * 8  # 90 at 0.8, 80 at the end


def test_the_loss_of_a_student_by_hand():
    codec = SimpleNamespace()
    codec.loss = lambda model, batch: codec.criterion(model(batch["input_ids"]), batch["labels"])
    distillation.learn_from(lambda ids: torch.tensor([[2 * math.log(3.0), 0.0], [9.0, 9.0]]), codec)
    logits = torch.zeros(2, 2, requires_grad=True)
    batch = {"input_ids": None, "labels": torch.tensor([0, IGNORED])}
    loss = codec.loss(lambda ids: logits, batch)
    # the task's is ln 2; at temperature 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2,
    # and 2^2 x KL is
    apart = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * apart, rel=1e-6)
    loss.backward()
    assert logits.grad[1].tolist() == [0.0, 0.0]


# The backbone's own loss: what is hidden, by hand; it is what transformers computes, and a frozen
# backbone forgets nothing.


@pytest.fixture
def few_texts(monkeypatch):
    monkeypatch.setattr("tunegrid.instruments.forgetting.MOST_TEXTS", 4)


@pytest.mark.usefixtures("few_texts")
@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "gpt2_qa_lora", "t5_sum_sft"])
def test_before_training_the_loss_is_that_of_the_checkpoint_as_transformers_computes_it(cell_id):
    """One text after the other, without padding; a mean over its tokens."""
    cell = quick_cell(cell_id)
    objective = cell.backbone.objective
    asked = asked_cell(cell)
    with torch.no_grad():
        losses = text_losses(asked)
    checkpoint = cell.profile.checkpoint_root / cell.backbone.micro
    model = LOADERS[objective].from_pretrained(checkpoint).eval()
    tokenizer = get_tokenizer(cell_id)
    texts = []
    for name, task in asked.tasks.items():
        if name != cell.task.id:
            texts += task_texts(task, asked.read_splits(task).test, tokenizer)
    rng = Random(0)
    expected = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:128]
        inputs, labels = HIDE[objective](ids, tokenizer, rng)
        if objective is Objective.CAUSAL:
            labels = inputs  # transformers shifts them
        with torch.no_grad():
            answer = model(input_ids=torch.tensor([inputs]), labels=torch.tensor([labels]))
        expected.append(float(answer.loss))
    means = [nats / count for nats, count in zip(losses.nats, losses.tokens, strict=True)]
    assert len(means) == 8
    assert means == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.usefixtures("few_texts")
@pytest.mark.parametrize(("cell_id", "forgets"), [("bert_sa_lora", False), ("gpt2_qa_sft", True)])
def test_training_a_head_alone_forgets_exactly_nothing_and_sft_at_a_high_rate_does(
    cell_id, forgets
):
    """bert_sa_lora adapts two layers behind the backbone."""
    cell = quick_cell(
        cell_id,
        max_steps=6,
        warmup_ratio=0.0,
        per_device_train_batch_size=8,
        learning_rate=3e-2,
        head_learning_rate=None,
    )
    asked = asked_cell(cell)
    with torch.no_grad():
        before = INSTRUMENT.before(asked)
    asked.trainer.run(silent())
    with pytest.raises(NotAskedError, match="resumed from a checkpoint"):
        INSTRUMENT.before(asked)
    with torch.no_grad():
        figures = INSTRUMENT.measure(asked, before)
    changes = values(figures, "change")
    if forgets:
        assert min(changes) > 1  # nats a token
    else:
        assert set(changes) == {0.0}
    assert values(figures, "trains") == [float(forgets)]
    assert list(INSTRUMENT.objections(figures)) == []
    figures.loc[figures.figure == "trains", "value"] = 1.0 - forgets
    assert len(list(INSTRUMENT.objections(figures))) == 1


# Confidence and hits: figures worked out by hand, compared with scikit-learn's, and a temperature
# that is known.


def calibrated(rows):
    """Confidences and hits of rows that are hits with just their confidence."""
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 0.999, rows)
    return confidences, (rng.random(rows) < confidences).astype(float)


def test_figures_are_scikit_learns():
    confidences, hits = calibrated(700)
    shares, means = calibration_curve(hits, confidences, n_bins=BINS)
    counts = np.histogram(confidences, bins=np.linspace(0, 1, BINS + 1))[0]
    distance = np.abs(shares - means) * counts[counts > 0]
    assert ece(confidences, hits)[0] == pytest.approx(100 * distance.sum() / 700)
    assert nll(confidences, hits).mean() == pytest.approx(log_loss(hits, confidences))


def forecasts(factor, hits=None):
    """Forecasts of two labels whose log-odds are `factor` times those of calibrated rows."""
    confidences, calibrated_hits = calibrated(20_000)
    log_odds = factor * np.log(confidences / (1 - confidences))

    def at(temperature):
        scaled = 1 / (1 + np.exp(-log_odds / temperature))
        return scaled, calibrated_hits if hits is None else hits

    return at


@pytest.mark.parametrize("temperature", [3, 1 / 2])
def test_the_temperature_that_spoiled_confidences_is_found_again(temperature):
    found = fit_temperature(forecasts(factor=temperature))
    assert found == pytest.approx(temperature, rel=0.05)


def test_rows_without_a_miss_fit_no_temperature():
    assert fit_temperature(forecasts(factor=1, hits=np.ones(20_000))) is None


# Confidences of outputs


def test_a_labels_confidence_is_its_softmax_and_at_no_temperature_below_a_half_of_two():
    codec = get_codec("bert_sa_sft")
    outputs = [(0, 0.1, [2.0, 0.0]), (1, 0.1, [-1.0, 1.0]), (1, 0.7, [0.5, math.nextafter(0.5, 1)])]
    softmax = 1 / (1 + math.exp(-2))
    assert confidences(codec, range(3), outputs) == pytest.approx([softmax, softmax, 0.5])
    assert confidences(codec, range(3), outputs, 2.0)[0] == pytest.approx(1 / (1 + math.exp(-1)))
    for temperature in (1 / 16, 0.5, 2.0, 16.0):
        assert min(confidences(codec, range(3), outputs, temperature)) >= 0.5


def test_a_text_has_no_confidence():
    assert confidences(get_codec("t5_sum_sft"), [0], [[3, 1]]) is None


class Rising(nn.Module):
    """Scores grow with the place: if nothing forbids it, the best span is the last token, padding
    or not.
    """

    def forward(self, input_ids, **rest):
        scores = torch.arange(input_ids.shape[1]).expand(input_ids.shape).float()
        return SimpleNamespace(start_logits=scores, end_logits=scores)


def test_a_spans_confidence_is_its_share_of_all_spans_that_the_row_allows():
    codec = get_codec("bert_qa_sft")
    row = {
        "context": "dover is old .",
        "question": "what is old ?",
        "answers": {"text": ["dover"], "answer_start": [0]},
    }
    [output] = codec.predict(Rising(), codec.encode([row], training=False), CPU)
    # The context's four tokens stand at 6 to 9, and each scores its place as first and as last: ten
    # pairs, 6 + 6, 6 + 7 ... 9 + 9.
    scores = [12, 13, 14, 15, 14, 15, 16, 16, 17, 18]
    for temperature in (1.0, 3.0):
        shares = [math.exp((score - 18) / temperature) for score in scores]
        assert confidences(codec, [0], [output], temperature) == [pytest.approx(1 / sum(shares))]
