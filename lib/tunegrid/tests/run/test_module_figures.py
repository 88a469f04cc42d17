"""Figures of modules while a model computes: what is noted, and that nothing of it stays behind."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tunegrid.run.before_training import before_training
from tunegrid.run.metrics import Metrics
from tunegrid.run.module_figures import ModuleFigures
from tunegrid.tests.small import fine_tuner, read_rows, silent

REVIEWS = read_rows("amazon_polarity/train")[:8]
NEWS = read_rows("cnn_dailymail/train")[:4]
HERE = __name__.partition(".")[0]


class Half(nn.Module):
    """Hands on half of what comes in."""

    def forward(self, states, scale=0.5):
        return (states * scale, "no tensor")


class Toy(nn.Module):
    """embed -> shrink -> shrink again -> out; shrink is one module, called twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.shrink = Half()
        self.out = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
            self.out.weight.copy_(torch.tensor([[1.0, 2.0]]))

    def forward(self, ids):
        states = self.shrink(self.embed(ids))[0]
        return self.out(self.shrink(states, scale=0.5)[0])


@pytest.fixture
def columns():
    """Figures of a forward and a backward pass of rows 1 and 2."""
    model = Toy()
    parameters = dict(model.named_parameters())
    figures = ModuleFigures(model)
    with figures.watch("forward"):
        loss = model(torch.tensor([[1, 2]])).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    figures.note_weights("forward", dict(zip(parameters, gradients, strict=True)))
    return figures.columns()


def test_norms_are_those_of_what_goes_in_and_comes_out(columns):
    assert columns["module"] == ["embed", "shrink", "shrink", "out", ""]
    assert columns["call"] == [1, 1, 2, 1, 1]
    assert columns["depth"] == [1, 1, 1, 1, 0]
    assert columns["kind"] == ["Embedding", "Half", "Half", "Linear", "Toy"]
    assert columns["library"] == ["torch", HERE, HERE, "torch", HERE]
    assert columns["source"] == [-1, 0, 1, 2, -1]  # who made what goes in
    # And what comes out: the model hands on what its last module made
    assert columns["maker"] == [0, 1, 2, 3, 3]
    # (3, 4) and (6, 8) have norms of 5 and 10, together the root of 125; a quarter of each, times
    # (1, 2), is 2.75 and 5.5.
    root = math.sqrt(125)
    assert columns["given_norm"] == pytest.approx(
        [root, root / 2, root / 4, math.hypot(2.75, 5.5), math.hypot(2.75, 5.5)]
    )
    ids = math.hypot(math.sin(1), math.sin(2))
    assert columns["taken_norm"] == pytest.approx([ids, root, root / 2, root / 4, ids])


def test_gradients_are_those_at_the_output_and_of_a_modules_own_weights(columns):
    # The loss is the sum of two rows: at the output 1 each; before it (1, 2) each, and a half and a
    # quarter of that.
    root_2 = math.sqrt(2)
    root_10 = math.sqrt(10)
    assert columns["gradient_norm"] == pytest.approx(
        [root_10 / 4, root_10 / 2, root_10, root_2, root_2]
    )
    # Of the embedding two rows get (1, 2) / 4; of the weights of `out` the gradient is the sum of
    # (3, 4) / 4 and (6, 8) / 4.
    assert columns["weights_norm"] == [
        pytest.approx(root_10 / 4),
        None,
        None,
        pytest.approx(3 * 5 / 4),
        None,
    ]


# The probe


@pytest.mark.parametrize(("cell_id", "rows"), [("bert_sa_lora", REVIEWS), ("t5_sum_qlora", NEWS)])
def test_losses_are_the_same_bit_for_bit_with_and_without_figures(monkeypatch, cell_id, rows):
    def probed_and_trained():
        trainer = fine_tuner(cell_id, rows, max_steps=2)
        kept = []
        figures = before_training(trainer, Metrics(), rows, kept.append)
        trainer.start_from(figures)
        [columns] = kept
        return columns["module"], figures, trainer.run(silent()).losses

    _, *with_modules = probed_and_trained()
    monkeypatch.setattr(ModuleFigures, "watch", lambda *_: nullcontext())
    modules, *without_modules = probed_and_trained()
    assert modules == []
    assert without_modules == with_modules
