"""AdamW by its definition: steps worked out by hand, and which optimizers are followed."""

import bitsandbytes as bnb
import pytest
import torch

from tunegrid.run.first_updates import AdamW, adamw_step


def test_two_steps_by_hand():
    settings = {"betas": (0.5, 0.75), "lr": 0.1, "weight_decay": 0.5, "eps": 0.0}
    state = adamw_step((torch.tensor([1.0]), torch.zeros(1), torch.zeros(1)), torch.tensor([2.0]), 1, settings)
    # Corrected, the first moments are 2 and 4: 1 x (1 - 0.1 x 0.5) - 0.1 x 2 / 2.
    assert state[0].item() == pytest.approx(0.85)
    state = adamw_step(state, torch.tensor([-1.0]), 2, settings)
    # m = 0.5 x 1 - 0.5 x 1 = 0; the weight only decays.
    assert state[0].item() == pytest.approx(0.85 * 0.95)


def followed(make, updates=3, spoil=lambda weight, update: None, size=(8, 4)):
    """What is said of an optimizer after some updates of two weights, of which one has no gradient."""
    torch.manual_seed(0)
    weight, unused = torch.randn(size, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimizer = make([weight, unused])
    adamw = AdamW(optimizer, {"weight": weight, "unused": unused})
    for update in range(updates):
        weight.grad = torch.randn(size)
        adamw.before_step(update, updates)
        optimizer.step()
        with torch.no_grad():
            spoil(weight, update)
        adamw.after_step(update)
    return adamw


def gap(*args, **options):
    return followed(*args, **options).gap


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
        lambda weights: torch.optim.AdamW(weights, lr=0.01, betas=(0.8, 0.9), eps=1e-3, fused=True),
        lambda weights: bnb.optim.AdamW8bit(weights, lr=0.01, weight_decay=0.1),  # of so few values it packs none
    ],
    ids=["torch", "fused", "bitsandbytes"],
)
def test_an_adamw_steps_as_defined(make):
    assert gap(make) < 1e-5
    assert followed(make, updates=24).late_gap < 1e-5  # the 19th


@pytest.mark.parametrize("kind", [torch.optim.AdamW, bnb.optim.AdamW8bit])
def test_a_late_step_shows_a_count_that_stopped_at_16(kind):
    def stopped(weights):
        optimizer = kind(weights, lr=0.01)
        step = optimizer.step

        def counted():
            for state in optimizer.state.values():
                state["step"] = min(state["step"], 0 * state["step"] + 15)  # a tensor, or a number
            step()

        optimizer.step = counted
        return optimizer

    sound, broken = followed(lambda weights: kind(weights, lr=0.01), 24, size=(64, 128)), followed(stopped, 24, size=(64, 128))
    assert sound.gap == broken.gap
    assert sound.late_gap < 1e-4 < 1e-3 < broken.late_gap
    assert sound.packed is (kind is bnb.optim.AdamW8bit)


def test_a_step_that_is_taken_twice_is_seen():
    def twice(weight, update):
        weight.sub_(0.01 * weight.grad.sign() if update == 0 else 0.0)  # the first step is the rate, whatever the gradient

    assert gap(lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0), spoil=twice) > 0.1


def test_decay_that_is_part_of_the_gradient_is_seen(monkeypatch):
    def coupled(weights):
        optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.5)
        optimizer.step = torch.optim.Adam(weights, lr=0.01, weight_decay=0.5).step
        return optimizer

    assert gap(coupled) > 0.1


def test_fewer_steps_other_optimizers_and_a_start_in_the_middle_say_nothing():
    assert gap(lambda weights: torch.optim.AdamW(weights, lr=0.01), updates=2) is None
    assert gap(lambda weights: torch.optim.SGD(weights, lr=0.01)) is None
    assert gap(lambda weights: torch.optim.AdamW(weights, lr=0.01, amsgrad=True)) is None
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.ones(2)
    adamw = AdamW(torch.optim.AdamW([weight]), {"weight": weight})
    adamw.before_step(2, 4)
    adamw.after_step(2)
    assert adamw.gap is None
