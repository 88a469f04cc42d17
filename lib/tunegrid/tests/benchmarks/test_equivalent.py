"""The table of what must be equal, and what it is compared by, with numbers worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.test_equivalent import Tolerance, apart, by_formula, coded, difference, eight_bit_levels
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE


def test_how_far_apart_two_tensors_are_is_the_norm_of_their_difference_in_units_of_the_larger_norm():
    assert apart(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])) == 0.0
    assert apart(torch.tensor([0.0, 8.0]), torch.tensor([6.0, 8.0])) == pytest.approx(0.6)  # 6 of 10


def test_what_cannot_be_compared_is_infinitely_far_apart():
    one = torch.tensor([1.0])
    pairs = [
        (one, torch.ones(2)),
        (one, one.double()),
        (one * math.nan, one * math.nan),
        (torch.tensor([1]), torch.tensor([2])),
    ]
    assert [apart(*pair) for pair in (*pairs, ("a", "b"), (1, True))] == [math.inf] * 6


def test_a_difference_is_named_with_its_place():
    one, other = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(1)}, {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(1)}
    assert difference("weights", one, one, Tolerance()) is None
    assert difference("weights", one, other, Tolerance(0.5)) == "weights[b]: 1.0e+00 apart, allowed 5e-01"
    assert difference("weights", one, other, Tolerance(0.2, whole=True)) is None  # 1 of the root of 26
    assert difference("weights", one, {}, Tolerance()) == "weights: there is nothing to compare"
    assert difference("weights", one, {"a": one["a"]}, Tolerance(0.5)) == "weights[b]: inf apart, allowed 5e-01"
    assert "something should" in difference("weights", one, one, Tolerance(1.0, least=0.0))


def test_small_differences_of_one_sign_are_a_bug_where_those_of_random_sign_are_noise():
    one, noise = torch.ones(4), torch.tensor([0.01, -0.01, 0.01, -0.01])
    assert difference("losses", one, one + noise, Tolerance(0.1, drift=0.005)) is None
    assert "1.0e-02 of the mean size" in difference("losses", one, one + 0.01, Tolerance(0.1, drift=0.005))


def test_codes_of_eight_bits_have_as_many_steps_in_a_power_of_ten_as_bits_are_left():
    signed, unsigned = eight_bit_levels(signed=True), eight_bit_levels(signed=False)
    assert (len(signed), len(unsigned)) == (256, 256)
    assert float(signed[(signed > 0.1) & (signed < 1)][0]) == pytest.approx(0.1 + 0.9 / 128)  # 64 steps, middles of them
    assert unsigned[(unsigned > 0) & (unsigned < 1e-6)].tolist() == pytest.approx([0.325e-6, 0.775e-6])


def test_a_code_is_that_of_the_nearest_level_and_of_two_as_near_either():
    values, levels = torch.tensor([1.0, -4.0, 0.0, 0.0, 3.0]), torch.tensor([-1.0, 0.0, 0.5, 1.0])
    known = torch.tensor([2, 1, 3, 0, 0])
    codes, sizes = coded(known, values, levels, 2, 0.0)
    assert (codes.tolist(), sizes.tolist()) == ([2, 0, 3, 0, 3], [4.0, 0.0, 3.0])  # 1 of 4 is between 0 and 0.5; zeros: any


def test_a_schedule_by_formula():
    recipe = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0, "learning_rate": 4.0, "head_learning_rate": None}
    cell = STUDY.cell("gpt2_sum_lora", QUICK_PROFILE)
    bench = SimpleNamespace(cell=cell, model=lambda: torch.nn.Linear(2, 2))
    assert by_formula(**recipe)(bench)["rates"].tolist() == pytest.approx([4.0, 4.0, 3.0, 3.0, 1.0, 1.0])
    rates = by_formula(**recipe | {"lr_scheduler_type": "linear", "warmup_steps": 1})(bench)["rates"]
    assert rates.tolist() == [0.0, 0.0, 4.0, 4.0, 2.0, 2.0]
