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


def noted(model, ids=(1, 2), phase="forward"):
    figures = ModuleFigures(model)
    with figures.watch(phase):
        loss = model(torch.tensor([ids])).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    figures.note_weights(
        phase, dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True))
    )
    return figures


def test_norms_are_those_of_what_goes_in_and_comes_out():
    columns = noted(Toy()).columns()
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


def test_gradients_are_those_at_the_output_and_of_a_modules_own_weights():
    columns = noted(Toy()).columns()
    # The loss is the sum of two rows: at the output 1 each; before it (1, 2) each, and a half and a
    # quarter of that.
    two = math.sqrt(2)
    ten = math.sqrt(10)
    assert columns["gradient_norm"] == pytest.approx([ten / 4, ten / 2, ten, two, two])
    # Of the embedding two rows get (1, 2) / 4; of the weights of `out` the gradient is the sum of
    # (3, 4) / 4 and (6, 8) / 4.
    assert columns["weights_norm"] == [
        pytest.approx(ten / 4),
        None,
        None,
        pytest.approx(3 * 5 / 4),
        None,
    ]


# The probe


def keep_modules(trainer, rows):
    kept = []
    return before_training(trainer, Metrics(), rows, kept.append), *kept


@pytest.mark.parametrize(("cell_id", "rows"), [("bert_sa_lora", REVIEWS), ("t5_sum_qlora", NEWS)])
def test_losses_are_the_same_bit_for_bit_with_and_without_figures(monkeypatch, cell_id, rows):
    def probed_and_trained():
        trainer = fine_tuner(cell_id, rows, max_steps=2)
        figures, columns = keep_modules(trainer, rows)
        trainer.start_from(figures)
        return figures, trainer.run(silent()).losses, columns["module"]

    *with_figures, _ = probed_and_trained()
    monkeypatch.setattr(ModuleFigures, "watch", lambda *_: nullcontext())
    *without, modules = probed_and_trained()
    assert modules == []
    assert without == with_figures
