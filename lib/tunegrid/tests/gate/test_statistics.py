"""Effects, intervals and p-values, worked out by hand."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from tunegrid.gate.noise import POINT_SCALE, make_scale
from tunegrid.gate.statistics import by_rows, by_training, holm, ratio, row_deviation


def test_a_change_is_held_to_training_noise_by_students_t():
    # with 4 degrees of freedom, t of -2.776 has 2.5 % below it, and 2.776 bounds the 95 % interval
    effect = by_training(0.0, -2.776, 1.0, 4, POINT_SCALE)
    assert (effect.p_worse, effect.p_better) == pytest.approx((0.025, 0.975), abs=1e-4)
    assert (effect.low, effect.high) == pytest.approx((-5.552, 0.0), abs=1e-3)
    # 2.776 errors must be seen, and noise takes 0.842 of them from a true drop one time in five
    assert [effect.detectable_drop(0.025, margin) for margin in (1.0, 10.0)] == pytest.approx(
        [3.618, 10.842], abs=1e-3
    )


def test_near_0_and_100_an_effect_is_held_to_the_scale_and_shown_in_points():
    scale = make_scale(500, "accuracy")
    error = 1.0 * scale.per_point(98.5)  # a point there
    drop = by_training(98.5, 95.5, error, np.inf, scale)
    gain = by_training(98.5, 99.5, error, np.inf, scale)
    assert (drop.points, drop.error, gain.error) == pytest.approx((-3.0, 1.0, 1.0))
    # of(98.5) - of(95.5) is 8.92, where a point is 3.98; of(99.5) - of(98.5) is 4.92
    assert (drop.p_worse, gain.p_better) == pytest.approx((0.0125, 0.1080), abs=1e-3)
    assert gain.high <= 100 - 98.5
    low = by_training(0.5, 0.0, error, np.inf, scale)  # less than the margin is left to lose
    assert low.low == pytest.approx(-0.5)
    assert low.detectable_drop(0.05, 1.0) == 1.0


def test_rows_tell_the_interval_of_their_mean_as_resamples_do():
    gains = np.random.default_rng(7).normal(1.0, 20.0, 200)
    effect = by_rows(gains)
    resamples = bootstrap(
        (gains,), np.mean, n_resamples=10_000, method="percentile", random_state=1
    ).confidence_interval
    assert (effect.low, effect.high) == pytest.approx((resamples.low, resamples.high), abs=0.2)
    assert ratio(gains.tolist(), [1.0] * 200) == pytest.approx(
        (gains.mean(), effect.low, effect.high)
    )
    assert ratio([1.0, float("nan")], [1.0, 1.0]) == pytest.approx((float("nan"),) * 3, nan_ok=True)
    unmoved = by_rows(np.zeros(5))
    assert unmoved.low == 0.0
    assert unmoved.high == 0.0
    assert unmoved.error == 0.0


def test_rows_that_go_both_ways_are_noise():
    # twenty rows of 384 gained, thirty lost: (20 * 100 ** 2 / 384 ** 2) ** 0.5
    assert row_deviation([np.array([-100.0] * 30 + [100.0] * 20 + [0.0] * 334)]) == pytest.approx(
        20**0.5 * 100 / 384
    )
    assert row_deviation([np.array([-100.0] * 30 + [0.0] * 354)]) == 0.0


def test_holm_by_hand():
    # ordered 0.01, 0.02, 0.04: times 3, 2, 1; never below the one before
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == pytest.approx(
        {"b": 0.03, "c": 0.04, "a": 0.04}
    )
    assert holm({"a": 0.6, "b": 0.5}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}
