"""The table of what must be equal, and what it is compared by, with numbers worked out by hand."""

import math

import pytest
import torch

from benchmarks.test_equivalent import Tolerance, apart, difference


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
