"""Tests whether one run is worse than another: effects with intervals and p-values.

Points are 0-100; an effect is new minus old. If training noise is known, a t-test holds the difference of mean scores to it:
the test rows are the same in both runs, so they add no error of their own. If it is not known, single rows are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from scipy import special, stats

RESAMPLES, CHUNKS = 10_000, 20  # drawn in so many parts, to bound memory
SEED = 0
ALPHA = 0.05
POWER = 0.8
TINY = 1e-300  # an error of 0 divides nothing
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


def flips_of(gains: Sequence[Array]) -> tuple[int, int]:
    """Rows that lost points, and rows that gained some, of all pairs."""
    return sum(int((each < 0).sum()) for each in gains), sum(int((each > 0).sum()) for each in gains)


def by_rows(gains: Array) -> Effect:
    """The effect of rows' gains, new minus old: over so many rows, their mean is normal (central limit theorem)."""
    error = float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else np.inf
    points, flips = float(gains.mean()), flips_of([gains])
    return replace(by_training(points, max(error, TINY), np.inf, rows=len(gains), flips=flips), error=error)


def paired(gains: Array, *, binary: bool) -> Effect:
    """The effect of gains in points; hits and misses (`binary`) go to McNemar's exact test."""
    effect, (lost, won) = by_rows(gains), flips_of([gains])
    if binary and lost + won:  # without a change each flip is a fair coin's toss
        worse, better = (stats.binomtest(flips, lost + won, alternative="greater").pvalue for flips in (lost, won))
        effect = replace(effect, p_worse=float(worse), p_better=float(better))
    # The largest share that may flip if none of so many did, at 95 % (the rule of three; Hanley 1983).
    unseen = 100 * float(1 - ALPHA ** (1 / len(gains)))
    low = effect.low if lost else min(effect.low, effect.points - unseen)
    high = effect.high if won else max(effect.high, effect.points + unseen)
    jump = float((gains**2).sum() / np.abs(gains).sum()) if lost + won else 100.0
    return replace(effect, low=low, high=high, jump=jump)


def ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float, float]:
    """A sum over rows per item, and its 95 % interval, for which the ratio is taken to be linear and the mean to be normal."""
    totals, sizes = np.asarray(sums, float), np.asarray(counts, float)
    value = float(totals.sum() / sizes.sum())
    if not np.isfinite(totals).all():
        return value, value, value
    effect = by_rows((totals - value * sizes) / sizes.mean())
    return value, value + effect.low, value + effect.high


def resampled_sums(values: Array) -> Array:
    """The sums of all resamples of rows, each of one value or of some columns."""
    rows, at_once, rng = len(values), RESAMPLES // CHUNKS, np.random.default_rng(SEED)
    shifts, sums = np.arange(at_once)[:, None] * rows, []
    for _ in range(CHUNKS):
        drawn = rng.integers(0, rows, (at_once, rows)) + shifts
        times = np.bincount(drawn.ravel(), minlength=at_once * rows).reshape(at_once, rows)  # that each draws each row
        sums.append(times.astype(float) @ values)
    return np.concatenate(sums)


def interval(figures: Array) -> tuple[float, float]:
    """Both ends of the 95 % interval of resampled figures."""
    low, high = np.percentile(figures, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


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


def slower(old: Sequence[float], new: Sequence[float]) -> float:
    """One-sided p-value of the new run's steps taking longer (Mann and Whitney 1947)."""
    return float(stats.mannwhitneyu(new, old, alternative="greater").pvalue)
