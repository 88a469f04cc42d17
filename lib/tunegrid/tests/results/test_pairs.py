"""Ratios of paired turns: intervals, looks and pools worked out by hand."""

import math

import pytest
from tunegrid.results.pairs import Change, Rule, in_words, judged, moderated, over_all

from tunegrid.errors import InputError
from tunegrid.results.judgements import Verdict
from tunegrid.results.noise import Deviation

ONE_LOOK = Rule(rounds=4)
TEN = [0.08, 0.10, 0.12, 0.10]  # mean 0.1, variance 0.0008 / 3, standard error 0.01633 / 2


def change(log_ratio=0.0, reach=0.01, error=0.003, df=6.0):
    return Change(log_ratio=log_ratio, error=error, df=df, reach=reach, rounds=4, margin=0.05)


def test_the_interval_of_four_pairs_by_hand():
    # Student's t of 3 degrees of freedom at 0.99 is 4.5407, times 0.008165 is 0.03707
    found = judged({"a": TEN}, ONE_LOOK)["a"]
    assert (found.log_ratio, found.error, found.df) == (pytest.approx(0.1), pytest.approx(0.008165, rel=1e-3), 3)
    assert (found.low, found.ratio, found.high) == pytest.approx((1.0650, 1.1052, 1.1469), abs=1e-4)
    assert found.verdict is Verdict.WORSE


def test_more_looks_make_the_interval_wider():
    # Four looks have 0.0025 each, at which t is 7.4533: the lower end is exp(0.1 - 0.06086), within the margin
    found = judged({"a": TEN}, Rule(rounds=10))["a"]
    assert found.low == pytest.approx(1.0399, abs=1e-4)
    assert found.verdict is Verdict.CANNOT_TELL


def test_more_cells_make_the_interval_wider():
    # Two cells and both together are three tests; the variance of both is common to them, with 6 degrees of freedom:
    # t at 1 - 0.01 / 3 is 4.0581; the deviation is that of `test_cells_with_the_same_noise...`, 1.2026 times their own
    found = judged({"a": TEN, "b": TEN}, ONE_LOOK)["a"]
    assert found.df == 6
    assert found.reach == pytest.approx(4.0581 * 1.2026 * 0.008165, rel=1e-3)


@pytest.mark.parametrize(
    ("log_ratio", "reach", "verdict"),
    [
        (0.10, 0.04, Verdict.WORSE),  # 1.062 to 1.150
        (0.10, 0.06, Verdict.CANNOT_TELL),  # 1.041 to 1.174
        (0.03, 0.01, Verdict.SAME),  # slower for certain, by less than the margin
        (0.00, 0.06, Verdict.CANNOT_TELL),
        (-0.10, 0.04, Verdict.BETTER),
        (-0.04, 0.02, Verdict.CANNOT_TELL),
    ],
)
def test_a_verdict_needs_the_whole_interval(log_ratio, reach, verdict):
    assert change(log_ratio, reach).verdict is verdict


def test_a_cell_is_judged_at_the_first_look_that_tells_it_and_not_again():
    later = [*[0.2, 0.201, 0.199, 0.2], *[0.0] * 6]
    found = judged({"a": later}, Rule(rounds=10))["a"]
    assert (found.rounds, found.verdict) == (4, Verdict.WORSE)


def test_a_cell_that_is_not_told_is_judged_at_its_last_look():
    found = judged({"a": [0.3, -0.3] * 4 + [0.1]}, Rule(rounds=10))["a"]  # nine rounds: the look after eight was the last
    assert (found.rounds, found.verdict) == (8, Verdict.CANNOT_TELL)


def test_nothing_is_judged_before_the_fourth_round():
    assert judged({"a": [0.0, 0.0, 0.0]}, Rule()) == {}


def test_a_steady_drift_is_no_change():
    # Each turn takes 2 % longer than the one before: A B, B A, A B, B A
    assert judged({"a": [0.02, -0.02, 0.02, -0.02]}, ONE_LOOK)["a"].log_ratio == pytest.approx(0.0)


def test_cells_with_the_same_noise_have_the_degrees_of_freedom_of_all():
    # Few degrees of freedom make logs of variances low: digamma(1.5) - log(1.5) = 0.0365 - 0.4055, half of which is 1.2026
    both = moderated({"a": Deviation(sd=0.01, df=3), "b": Deviation(sd=0.01, df=3)})
    assert both["a"] == both["b"]
    assert (both["a"].sd, both["a"].df) == (pytest.approx(0.012026, rel=1e-3), 6)


def test_one_noisy_cell_among_many_keeps_its_noise():
    quiet = {str(cell): Deviation(sd=0.01, df=3) for cell in range(8)}
    noise = moderated(quiet | {"noisy": Deviation(sd=0.5, df=3)})
    assert noise["noisy"].sd > 0.35
    assert noise["noisy"].df == 3


def test_a_single_cell_has_its_own_noise():
    assert moderated({"a": Deviation(sd=0.01, df=3)}) == {"a": Deviation(sd=0.01, df=3)}


def test_all_cells_together_by_hand():
    # sqrt(0.003^2 + 0.004^2) / 2 = 0.0025; 6 x (9 + 16)^2 / (9^2 + 16^2) = 11.128 degrees of freedom
    found = over_all({"a": change(0.02, error=0.003), "b": change(0.04, error=0.004)}, ONE_LOOK, 2)
    assert (found.log_ratio, found.error) == (pytest.approx(0.03), pytest.approx(0.0025))
    assert found.df == pytest.approx(11.128, abs=1e-3)
    assert found.ratio == pytest.approx(math.sqrt(math.exp(0.02) * math.exp(0.04)))


def test_all_cells_together_need_every_cell_and_more_than_one():
    assert over_all({"a": change()}, ONE_LOOK, 2) is None
    assert over_all({"a": change()}, ONE_LOOK, 1) is None


@pytest.mark.parametrize(
    ("log_ratio", "reach", "words"),
    [
        (math.log(1.04), 0.019, "4 % slower (2 to 6 %)"),
        (math.log(0.90), 0.02, "10 % faster (8 to 12 %)"),
        (0.001, 0.02, "as fast (-2 to 2 %)"),
        (0.03, 0.06, "3 % slower (-3 to 9 %): cannot tell"),
    ],
)
def test_words_of_a_change(log_ratio, reach, words):
    assert in_words(change(log_ratio, reach), "slower", "faster", "as fast") == words


@pytest.mark.parametrize("rounds", [2, 5])
def test_a_rule_without_balanced_looks_is_refused(rounds):
    with pytest.raises(InputError, match=f"{rounds} rounds: give an even number from 4"):
        Rule(rounds=rounds)


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(InputError, match="a margin of 0 %"):
        Rule(margin=0.0)
