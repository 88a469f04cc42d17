"""Dropout's masks: as many ones as they should have, by torch's seed, wherever torch draws them on a CPU."""

import subprocess
import sys

import pytest
import torch

from lib.run.dropout import bernoulli_

COUNT = 1_000_000
IN_TORCH = """
import torch
from lib.run.dropout import bernoulli_, draw_masks_sooner

draw_masks_sooner(), draw_masks_sooner()


def drawn(draw):
    torch.manual_seed(3)
    return draw()


def attended():
    "Equal weights, whose sums over an identity are the weights that are left."
    nothing = torch.zeros(2, 1, 8, 8)
    return torch.nn.functional.scaled_dot_product_attention(nothing, nothing, torch.eye(8), dropout_p=0.25)


ours = drawn(lambda: bernoulli_(torch.empty(100), 0.75))
assert torch.equal(drawn(lambda: torch.nn.functional.dropout(torch.ones(100), 0.25)), ours / 0.75)
ours = drawn(lambda: bernoulli_(torch.empty(2, 1, 8, 8), 0.75))
assert torch.allclose(drawn(attended), ours / 0.75 / 8)
weight = torch.ones(100, requires_grad=True)
torch.nn.functional.dropout(weight, 0.25).sum().backward()
assert set(weight.grad.tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
"""


def drawn(p=0.9, shape=COUNT, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return bernoulli_(torch.empty(shape, dtype=dtype), p)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.95, 0.999])
def test_a_mask_has_as_many_ones_as_its_probability_says(p):
    """Of ten million: within four standard deviations. At 0.9 a byte alone would be off by 25."""
    ones = drawn(p, 10 * COUNT).sum(dtype=torch.float64).item()
    assert abs(ones - 10 * p * COUNT) < 4 * (p * (1 - p) * 10 * COUNT) ** 0.5


@pytest.mark.parametrize("p", [0.5, 0.9, 0.999])
def test_neighbours_are_independent(p):
    """Of a million pairs, in each place of the eight that one number gives, p x p are two ones."""
    mask = drawn(p, 8 * COUNT + 1)
    for place in range(8):
        both = (mask[place : 8 * COUNT : 8] * mask[place + 1 : 8 * COUNT + 1 : 8]).sum().item()
        assert abs(both - p * p * COUNT) < 4 * (p * p * (1 - p * p) * COUNT) ** 0.5


def test_the_seed_of_torch_says_which_mask_and_the_next_one_is_another():
    first = drawn(shape=(5, 7))
    second = bernoulli_(torch.empty(5, 7), 0.9)
    assert torch.equal(drawn(shape=(5, 7)), first)
    assert torch.equal(bernoulli_(torch.empty(5, 7), 0.9), second)
    assert not torch.equal(drawn(0.5, 1000, seed=1), drawn(0.5, 1000, seed=2))


def test_a_generator_of_its_own_leaves_that_of_torch_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    masks = [bernoulli_(torch.empty(100), generator=torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int64])
def test_masks_of_every_type_are_alike(dtype):
    assert torch.equal(drawn(shape=99, dtype=dtype).double(), drawn(shape=99).double())


def test_a_mask_that_lies_across_memory_is_filled_as_one_that_does_not():
    torch.manual_seed(0)
    across = torch.empty(7, 5).T
    assert bernoulli_(across, 0.9) is across
    assert torch.equal(across, drawn(shape=(5, 7)))


def test_what_is_certain_is_exact_and_what_is_no_probability_is_refused():
    assert drawn(1.0).all()
    assert not drawn(0.0).any()
    assert drawn(shape=0).shape == (0,)
    with pytest.raises(RuntimeError, match=r"between 0 and 1, but p is 1\.5"):
        drawn(1.5)


def test_dropout_and_attention_draw_their_masks_here():
    """In a process of its own: a kernel stays replaced."""
    subprocess.run([sys.executable, "-W", "error", "-c", IN_TORCH], check=True, timeout=60)
