"""Figures of two methods beside each other over their seeds: gaps worked out by hand, and their words."""

import numpy as np
import pytest

from tunegrid.record.parts import Estimate
from tunegrid.results.compare import Gap
from tunegrid.results.contrasts import ONE_SEED, Contrast, Figure, clauses, contrasts, gap, shown


def figure(method, *values, **changes):
    return Figure(method=method, what="peak", values=values, **changes)


def test_the_variances_of_two_means_add_up():
    """Means 21 and 7; a mean of two has variance 2 / 2 and one degree of freedom, the gap 2 and two, for which t is 4.303."""
    own = gap(figure("lora", 20.0, 22.0), figure("sft", 6.0, 8.0))
    assert (own.points, own.error, own.df, own.by) == (14.0, pytest.approx(2**0.5), pytest.approx(2.0), "2 seeds")
    assert (own.interval.low, own.interval.high) == (pytest.approx(14 - 6.085, abs=1e-3), pytest.approx(14 + 6.085, abs=1e-3))
    assert own.p() == pytest.approx(1 - 14 / (196 + 4) ** 0.5)  # of two degrees, 1 - t / sqrt(t ** 2 + 2)
    assert own.p(14.0) == pytest.approx(1.0)


def test_the_intervals_of_what_was_asked_add_their_variances():
    """Half of each interval is 1.96, which is one standard error: 1 + 1 between seeds, 1 + 1 of texts."""
    asked = [Estimate(value=0.0, low=-1.96, high=1.96)] * 2
    own = gap(figure("lora", 20.0, 22.0, estimates=asked), figure("sft", 6.0, 8.0, estimates=asked))
    assert (own.error, own.by) == (pytest.approx(2.0), "2 seeds, rows")
    assert own.df == pytest.approx(8.0, rel=1e-3)  # 4 ** 2 over 1 / 1 + 1 / 1, and two parts of nearly nothing


def test_rows_that_both_have_are_paired():
    """Each row loses 30 points more: rows leave no doubt but what four of them resolve, half of 25 points."""
    lora = figure("lora", -40.0, -42.0, rows=np.array([-40.0, -50.0, -40.0, -50.0]))
    sft = figure("sft", -10.0, -12.0, rows=np.array([-10.0, -20.0, -10.0, -20.0]))
    assert gap(lora, sft).error == pytest.approx((1 + 1 + 12.5**2) ** 0.5)


def test_figures_without_any_deviation_differ_or_do_not():
    same, other = gap(figure("lora", 1.0, 1.0), figure("sft", 1.0, 1.0)), gap(figure("lora", 1.0, 1.0), figure("sft", 2.0, 2.0))
    assert (same.p(), other.p()) == (1.0, 0.0)
    assert (other.interval.low, other.interval.high) == (-1.0, -1.0)


@pytest.mark.parametrize("one", [(20.0,), (20.0, 22.0)])
def test_one_seed_tells_nothing(one):
    [contrast] = contrasts([(figure("lora", *one), figure("sft", 6.0))])
    assert (contrast.gap, contrast.told, contrast.reason) == (None, False, ONE_SEED)
    assert clauses([contrast], "GiB", 2) == [f"whether lora differs from sft in peak cannot be told: {ONE_SEED}"]


def test_pairs_are_tested_together():
    """p is 0.038 for a gap of 7 alone, and Holm takes it twice where another pair, of a gap of 1, is tested, too."""
    seven, one = (figure("lora", 13.0, 15.0), figure("sft", 6.0, 8.0)), (figure("qlora", 7.0, 9.0), figure("sft", 6.0, 8.0))
    assert [contrast.told for contrast in contrasts([seven])] == [True]
    assert [contrast.told for contrast in contrasts([seven, one])] == [False, False]


def test_below_and_above_have_an_interval_that_leaves_out_0():
    told = contrasts([(figure("lora", 20.0, 22.0), figure("sft", 6.0, 8.0))])
    assert clauses(told, "GiB", 2) == ["lora's peak is 14.00 GiB above sft's (7.92 to 20.08)"]
    told = contrasts([(figure("sft", 6.0, 8.0), figure("lora", 20.0, 22.0))])
    assert clauses(told, "GiB", 2) == ["sft's peak is 14.00 GiB below lora's (7.92 to 20.08)"]


def test_what_cannot_be_told_from_one_method_is_one_part_of_a_sentence():
    sft = figure("sft", 6.0, 8.0)
    told = contrasts([(figure("lora", 7.0, 9.0), sft), (figure("qlora", 6.0, 8.0), sft)])
    assert clauses(told, "GiB", 1) == ["lora's peak (-5.1 to +7.1) and qlora's peak (-6.1 to +6.1) cannot be told from sft's"]


def test_of_several_figures_the_one_with_the_smallest_p_value_has_its_interval():
    def untold(what, points):
        own = Gap(points=points, error=1.0, df=1e9, by="")
        return Contrast(one="lora", other="sft", what=what, gap=own)

    told = [untold("change under upper", 0.5), untold("change under typos5", -1.5), untold("change under names", 0.0)]
    assert clauses(told, "points", 1) == [
        "3 figures of lora, of which change under typos5 is the least alike (-3.5 to +0.5), cannot be told from sft's"
    ]


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((0.26, 2.14), "0.3 to 2.1"),
        ((0.04, 2.14), "0.04 to 2.14"),
        ((-0.004, 2.0), "-0.004 to 2.000"),
        ((0.0, 2.0), "0.0 to 2.0"),
    ],
)
def test_an_end_that_is_not_0_does_not_read_as_0(ends, words):
    assert shown(*ends, 1) == words
