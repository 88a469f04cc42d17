import time
import tracemalloc

import numpy as np
import pytest
from scipy.stats import bootstrap

from tunegrid.results import statistics
from tunegrid.results.judgements import Verdict
from tunegrid.results.quality import verdict_of
from tunegrid.results.statistics import (
    ALPHA,
    RESAMPLES,
    Effect,
    by_training,
    critical_value,
    gains_of,
    holm,
    resampled_means,
)
from tunegrid.results.statistics import paired as paired_gains


@pytest.fixture
def rng():
    """Draws that do not depend on which tests ran before."""
    return np.random.default_rng(7)


def paired(old, new):
    """The effect of two runs' points."""
    binary = all(np.isin(points, (0.0, 100.0)).all() for points in (old, new))
    return paired_gains(gains_of(old, new), binary=binary)


def hits(lost, won, both=0, neither=0):
    """Paired hits and misses, old and new."""
    old = [100.0] * lost + [0.0] * won + [100.0] * both + [0.0] * neither
    new = [0.0] * lost + [100.0] * won + [100.0] * both + [0.0] * neither
    return old, new


def test_a_drop_is_held_to_the_tail_and_a_gain_is_not():
    drop = by_training(-4.0, 1.0, 1e9, rows=500, flips=(0, 0), tail=2.0)
    assert drop.p_worse == pytest.approx(0.02275, abs=1e-5)  # two deviations
    assert by_training(4.0, 1.0, 1e9, rows=500, flips=(0, 0), tail=2.0).p_better == pytest.approx(3.167e-5, rel=1e-3)
    assert critical_value(0.02275, 1e9, 2.0) == pytest.approx(4.0, abs=1e-3)
    # 1.96 down, twice that up: it may have trained badly
    assert (drop.low, drop.high) == (pytest.approx(-5.960, abs=1e-3), pytest.approx(-0.080, abs=1e-3))


def test_mcnemar_by_hand_is_for_hits_and_the_bootstrap_for_scores():
    # 6 lost, 1 won: of seven tosses at least six heads, (7 + 1) / 128; at least one, 127 / 128
    effect = paired(*hits(6, 1, 20))
    assert (effect.p_worse, effect.p_better) == pytest.approx((8 / 128, 127 / 128))
    graded = paired([50.0, 100.0, 0.0], [50.0, 90.0, 0.0])
    assert graded.p_worse * (RESAMPLES + 1) == pytest.approx(round(graded.p_worse * (RESAMPLES + 1)))


def test_an_effect_is_new_minus_old_and_the_same_twice_is_none():
    effect = paired(*hits(6, 1, both=93))
    assert effect.points == -5.0
    assert effect.flips == (6, 1)
    assert effect.rows == 100
    assert effect.low < -5.0 < effect.high
    assert effect.p_better > 0.9
    effect = paired([10.0, 55.0, 90.0], [10.0, 55.0, 90.0])
    assert (effect.points, effect.p_worse, effect.p_better, effect.error) == (0, 1, 1, 0)


def test_ten_rows_without_a_flip_may_still_hide_one_in_four():
    # 0.05 ** (1 / 10) = 0.741: with so many rows unflipped, more than 25.9 % would flip in one draw of twenty
    effect = paired([100.0] * 10, [100.0] * 10)
    assert (effect.low, effect.high) == pytest.approx((-25.9, 25.9), abs=0.05)
    assert verdict_of(effect, 1.0, 1.0, margin=1.0) is Verdict.CANNOT_TELL
    assert verdict_of(paired([100.0] * 512, [100.0] * 512), 1.0, 1.0, margin=1.0) is Verdict.SAME  # 0.58 %
    one_won = paired([0.0] + [100.0] * 9, [100.0] * 10)
    assert one_won.low == pytest.approx(10 - 25.9, abs=0.05)


@pytest.mark.parametrize(("old", "new"), [([1.0], [1.0, 2.0]), ([float("nan")], [1.0])])
def test_what_does_not_pair_is_refused(old, new):
    with pytest.raises(ValueError, match="pair only row by row, in numbers"):
        paired(old, new)


def test_the_interval_is_scipys(rng):
    gains = rng.normal(1.0, 20.0, 200)
    ours = paired(np.zeros(200), gains)
    theirs = bootstrap((gains,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.15)
    assert ours.error == pytest.approx(gains.std(ddof=1) / 200**0.5)


def test_the_same_seed_gives_the_same_interval_and_resamples_have_the_mean(rng):
    values = rng.normal(0, 1, 50)
    assert np.array_equal(resampled_means(values), resampled_means(values))
    assert resampled_means(np.ones(50)) == pytest.approx(1.0)
    assert len(resampled_means(values)) == RESAMPLES


def as_small(monkeypatch, call):
    """What the draws of single rows would give."""
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "SHARED", 10**9)
        return call()


def test_of_many_rows_graded_scores_have_the_same_interval(rng, monkeypatch):
    gains = rng.normal(1.0, 20.0, 4000)
    ours, theirs = resampled_means(gains), as_small(monkeypatch, lambda: resampled_means(gains))
    assert np.percentile(ours, [2.5, 50, 97.5]) == pytest.approx(np.percentile(theirs, [2.5, 50, 97.5]), abs=0.03)


def test_100000_rows_do_not_take_a_byte_a_resample(rng):
    rows = 100_000
    gains, truth = rng.normal(0, 10, rows), rng.integers(0, 2, rows)
    other = np.where(rng.random(rows) < 0.01, 1 - truth, truth)
    tracemalloc.start()
    paired(np.zeros(rows), gains)
    paired(*np.where([truth == 1, other == 1], 100.0, 0.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # 10,000 resamples of one byte per row would take 1 GB


def test_a_change_is_held_to_training_noise_by_students_t():
    # with 4 degrees of freedom, t of -2.776 has 2.5 % below it, and 2.776 bounds the 95 % interval
    effect = by_training(-2.776, 1.0, 4, rows=500, flips=(3, 1))
    assert effect.p_worse == pytest.approx(0.025, abs=1e-4)
    assert effect.p_better == pytest.approx(0.975, abs=1e-4)
    assert (effect.low, effect.high) == pytest.approx((-5.552, 0.0), abs=1e-3)
    # 2.776 errors must be seen, and noise takes 0.842 of them from a true drop one time in five
    assert effect.smallest(0.025, 1.0) == pytest.approx(3.618, abs=1e-3)
    assert effect.smallest(0.025, 10.0) == pytest.approx(10.842, abs=1e-3)


def test_holm_by_hand():
    # ordered 0.01, 0.02, 0.04: times 3, 2, 1; never below the one before
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == pytest.approx({"b": 0.03, "c": 0.04, "a": 0.04})
    assert holm({"a": 0.6, "b": 0.5}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


# What the gate sees, at the sizes of the quick test sets, one of nine cells


SIZES = {"accuracy": 512, "exact_match": 384, "f1": 384, "rougeLsum": 192}
MARGINS = {"accuracy": 1.0, "exact_match": 1.5, "f1": 1.5, "rougeLsum": 1.0}
CELLS = 9


def draw(rng, metric, drop):
    """Paired points of two runs whose true scores differ by `drop` points; models as the quick cells are."""
    count = SIZES[metric]
    if metric == "accuracy":  # 97 %, one row in fifty flips by chance
        return flips(rng, count, 0.97, 0.01, drop)
    if metric == "exact_match":  # 65 %, one row in eight flips by chance
        return flips(rng, count, 0.65, 0.06, drop)
    if metric == "f1":  # the same rows, of which a third of the misses are half right
        old, new = flips(rng, count, 0.65, 0.06, drop * 6 / 5)  # a lost row falls to 50 once in three times
        half = rng.random(count) < 1 / 3
        return np.where((old == 0) & half, 50.0, old), np.where((new == 0) & half, 50.0, new)
    old = np.clip(rng.normal(75, 10, count), 0, 100)  # a summary's score moves by some points either way
    return old, np.clip(old + rng.normal(-drop, 6, count), 0, 100)


def flips(rng, count, right, chance, drop):
    toss = rng.random(count)
    old = rng.random(count) < right
    lose, win = (chance + drop / 100) / right, chance / (1 - right)
    return 100.0 * old, 100.0 * np.where(old, toss >= lose, toss < win)


def verdicts(metric, drop, draws):
    rng = np.random.default_rng(11)
    outcomes, smallest = [], []
    for _ in range(draws):
        effect = paired(*draw(rng, metric, drop))
        smallest.append(effect.smallest(ALPHA / CELLS, MARGINS[metric]))
        p_worse, p_better = (min(1.0, CELLS * p) for p in (effect.p_worse, effect.p_better))  # the eight others saw nothing
        outcomes.append(verdict_of(effect, p_worse, p_better, MARGINS[metric]))
    return outcomes, float(np.median(smallest))


def test_power_and_false_alarms_over_250_draws_each():
    began = time.process_time()
    for metric in SIZES:
        dropped, sees = verdicts(metric, 3.0, 250)
        power = dropped.count(Verdict.WORSE) / 250
        print(
            f"{metric}: a drop of 3 points is called worse in {power:.0%} of draws; the gate says it sees drops from {sees:.1f}"
        )
        assert power >= 0.8 or sees > 3.0
        alike, _ = verdicts(metric, 0.0, 250)
        assert alike.count(Verdict.WORSE) / 250 <= 0.05
    assert time.process_time() - began < 60  # 8 on an idle machine


@pytest.mark.parametrize("metric", SIZES)
def test_a_promised_power_is_kept(metric):
    """Where the gate says that it sees a drop, it calls the drop worse four times in five."""
    _, sees = verdicts(metric, 0.0, 100)
    outcomes, _ = verdicts(metric, sees, 300)
    assert outcomes.count(Verdict.WORSE) / 300 >= 0.7  # McNemar's exact test is a little conservative


def effect(points, low, p=1.0):
    return Effect(points=points, low=low, high=points + 1, p_worse=p, p_better=1.0, error=0.5, rows=100, flips=(1, 1))


@pytest.mark.parametrize(
    ("change", "p_worse", "p_better", "verdict"),
    [
        (effect(-3.0, -5.0), 0.01, 1.0, Verdict.WORSE),
        (effect(-3.0, -5.0), 0.20, 1.0, Verdict.CANNOT_TELL),
        (effect(-0.5, -0.8), 0.01, 1.0, Verdict.SAME),  # no chance, but within the margin
        (effect(-0.5, -1.8), 0.01, 1.0, Verdict.CANNOT_TELL),
        (effect(2.0, 1.0), 1.0, 0.01, Verdict.BETTER),
        (effect(0.5, 0.1), 1.0, 0.01, Verdict.SAME),  # a gain within the margin
        (effect(0.0, -0.4), 1.0, 1.0, Verdict.SAME),
    ],
)
def test_verdicts_by_hand(change, p_worse, p_better, verdict):
    assert verdict_of(change, p_worse, p_better, margin=1.0) is verdict
