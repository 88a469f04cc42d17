"""Tests whether one run is worse than another: effects with intervals and p-values.

Points are 0-100; an effect is new minus old. If training noise is known, a t-test holds the difference of mean scores to it:
the test rows are the same in both runs, so they add no error of their own. If it is not known, single rows are compared:
hits and misses by McNemar's exact test, graded scores by a paired bootstrap. Needs numpy and scipy, no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
from scipy import special, stats

RESAMPLES = 10_000
CHUNKS = 20  # resamples are drawn in so many parts, to bound memory
SHARED = 2500  # rows: draws of at most so many are kept, 25 MB; sums of more rows are normal (central limit theorem)
SEED = 0
ALPHA = 0.05
POWER = 0.8
LEAST_CHANCE = 1e-15  # of one p-value: below it, the tangent is infinite
MOST_CHANCE = 0.95  # of one p-value in a combination: a gain in one score must not outweigh a loss in another
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How two runs differ on the same rows."""

    points: float  # new minus old, on average
    low: float  # of the 95 % interval
    high: float
    p_worse: float  # one-sided, as p_better
    p_better: float
    error: float  # standard, of `points`
    rows: int
    flips: tuple[int, int] | None  # rows that lost points, and rows that gained some; None: no points by row were at hand
    df: float = np.inf  # degrees of freedom of training noise; infinitely many if single rows were compared
    tail: float = 1.0  # by how much training noise reaches further down than normal noise
    jump: float = 0.0  # points by which a changed row moves, the mean of squares over the mean; 0 by training noise

    def smallest(self, alpha: float, margin: float) -> float:
        """The smallest drop, in points, that is called worse four times in five: significant at `alpha`, and of the margin.

        Rows that change by a drop add variance, `jump` points for each point of the drop: a quadratic equation (for hits and
        misses it is close to the sample size formula of Lachin 1992).
        """
        beta = float(special.ndtri(POWER))
        k = (critical_value(alpha, self.df, self.tail) + beta) ** 2 / self.rows
        drop = (k * self.jump + float(np.sqrt((k * self.jump) ** 2 + 4 * k * self.rows * self.error**2))) / 2
        return max(drop, margin + beta * self.error, 100 / self.rows)


def critical_value(alpha: float, df: float, tail: float = 1.0) -> float:
    """How many standard errors below what is expected a score must lie to be called worse, by gate or bound.

    `alpha` is the chance that a healthy score lies there; by `tail`, bad trainings are worse than normal noise would have them.
    """
    return -tail * float(special.stdtrit(df, alpha))


def by_training(
    points: float, error: float, df: float, *, rows: int, flips: tuple[int, int] | None, tail: float = 1.0
) -> Effect:
    """An effect of `points`, whose standard error by training noise rests on `df` degrees of freedom (Student 1908).

    A drop is held to the noise's `tail`, too. The ends of the interval belong to the two one-sided tests: a run that trained
    badly may be better than it looks.
    """
    low, high = points - critical_value(ALPHA / 2, df) * error, points + critical_value(ALPHA / 2, df, tail) * error
    worse, better = float(special.stdtr(df, points / error / tail)), float(special.stdtr(df, -points / error))
    tested = {"points": points, "low": low, "high": high, "p_worse": worse, "p_better": better, "error": error}
    return Effect(**tested, rows=rows, flips=flips, df=df, tail=tail)


def row_deviation(gains: Sequence[Array]) -> float:
    """A run's deviation in points by single rows alone, from the paired gains of like runs: at least this much is noise.

    Without a change, rows gain and lose alike, so the side that moved less tells the noise of both: twice its squares is the
    variance of a difference of two runs. Rows that a change makes worse, or better, do not count.
    """
    variances = [[(np.maximum(sign * each, 0) ** 2).sum() / len(each) ** 2 for each in gains] for sign in (1, -1)]
    return float(min(np.mean(side) for side in variances) ** 0.5)


def gains_of(old: Sequence[float], new: Sequence[float]) -> Array:
    """New minus old points of each row; raises ValueError if the two differ in length, or a point is not a number."""
    before, after = np.asarray(old, float), np.asarray(new, float)
    if before.shape != after.shape or not np.isfinite(before).all() or not np.isfinite(after).all():
        raise ValueError("two runs pair only row by row, in numbers")
    gains: Array = after - before
    return gains


def flips_of(gains: Sequence[Array]) -> tuple[int, int]:
    """Rows that lost points, and rows that gained some, of all pairs."""
    return sum(int((each < 0).sum()) for each in gains), sum(int((each > 0).sum()) for each in gains)


def resampled(gains: Array) -> Effect:
    """The effect of rows' gains, tested by means of resamples, centred on no change (Efron and Tibshirani 1993, chapter 16)."""
    means, points = resampled_means(gains), float(gains.mean())
    low, high = interval(means)
    worse, better = (int((sign * (means - points) <= sign * points).sum()) if means.any() else RESAMPLES for sign in (1, -1))
    return Effect(
        points=points,
        low=low,
        high=high,
        p_worse=(1 + worse) / (RESAMPLES + 1),
        p_better=(1 + better) / (RESAMPLES + 1),
        error=float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else np.inf,
        rows=len(gains),
        flips=flips_of([gains]),
    )


def paired(gains: Array, *, binary: bool) -> Effect:
    """The effect of gains in points; hits and misses (`binary`) go to McNemar's exact test, anything else to the bootstrap."""
    effect, (lost, won) = resampled(gains), flips_of([gains])
    if binary and lost + won:  # without a change each flip is a fair coin's toss
        worse, better = (stats.binomtest(flips, lost + won, alternative="greater").pvalue for flips in (lost, won))
        effect = replace(effect, p_worse=float(worse), p_better=float(better))
    # The largest share that may flip if none of so many did, at 95 % (the rule of three; Hanley 1983).
    unseen = 100 * float(1 - ALPHA ** (1 / len(gains)))
    low = effect.low if lost else min(effect.low, effect.points - unseen)
    high = effect.high if won else max(effect.high, effect.points + unseen)
    jump = float((gains**2).sum() / np.abs(gains).sum()) if lost + won else 100.0
    return replace(effect, low=low, high=high, jump=jump)


def resampled_means(values: Array) -> Array:
    """Means of all resamples."""
    means: Array = resampled_sums(values) / len(values)
    return means


def resampled_sums(values: Array) -> Array:
    """The sums of all resamples of rows, each of one value or of some columns."""
    if len(values) <= SHARED:
        return np.concatenate([part.astype(float) @ values for part in _draws(len(values))])
    columns = values.reshape(len(values), -1)
    centred, rng = columns - columns.mean(0), np.random.default_rng(SEED)
    sums = rng.multivariate_normal(columns.sum(0), centred.T @ centred, RESAMPLES, check_valid="ignore")
    return sums.reshape(RESAMPLES, *values.shape[1:])


@cache
def _draws(rows: int) -> list[Any]:
    """How often each resample draws each row, in parts of (resamples, rows) bytes; the same draws for equal numbers of rows."""
    rng, at_once = np.random.default_rng(SEED), RESAMPLES // CHUNKS
    shifts = np.arange(at_once)[:, None] * rows
    drawn = (rng.integers(0, rows, (at_once, rows)) + shifts for _ in range(CHUNKS))
    return [np.bincount(one.ravel(), minlength=at_once * rows).reshape(at_once, rows).astype(np.uint8) for one in drawn]


def interval(figures: Array) -> tuple[float, float]:
    """Both ends of the 95 % interval of resampled figures."""
    low, high = np.percentile(figures, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


def ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float, float]:
    """A sum over groups per item, and its 95 % interval over resampled groups, of which the ratio is taken to be linear."""
    totals, sizes = np.asarray(sums, float), np.asarray(counts, float)
    value = float(totals.sum() / sizes.sum())
    if not np.isfinite(totals).all():
        return value, value, value
    low, high = interval(resampled_means((totals - value * sizes) / sizes.mean()))
    return value, value + low, value + high


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjusted p-values by key (Holm 1979): they bound the chance of any false alarm among all tests."""
    ordered = sorted(p_values, key=lambda key: p_values[key])
    steps = [min(1.0, (len(ordered) - index) * p_values[key]) for index, key in enumerate(ordered)]
    return dict(zip(ordered, accumulate(steps, max), strict=True))


def cauchy(p_values: Sequence[float]) -> float:
    """One p-value for all: small if any is, whatever their dependence (the Cauchy combination test; Liu and Xie 2020)."""
    if not p_values:
        return 1.0
    bounded = np.clip(np.asarray(p_values, float), LEAST_CHANCE, MOST_CHANCE)
    return float(np.arctan2(1, np.mean(1 / np.tan(np.pi * bounded))) / np.pi)
