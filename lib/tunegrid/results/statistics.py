"""Tests whether one run is worse than another: effects with intervals and p-values.

Points are 0-100; an effect is new minus old. Where training noise is known, a t-test holds the difference of mean scores to it:
the test rows are the same in both runs, so they add no error of their own. Where it is not known, single rows are compared:
hits and misses by McNemar's exact test, graded scores by a paired bootstrap. Needs numpy and scipy, no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import special, stats

RESAMPLES = 10_000
CHUNKS = 20  # resamples are drawn in so many parts, to bound memory
SMALL = 1000  # rows
SHARED = 2500  # rows: draws of at most so many are kept, 25 MB, for all scores with as many rows
KINDS = 500  # of rows that are drawn by their number; sums of more changed rows than that are normal (central limit theorem)
SEED = 0
ALPHA = 0.05
POWER = 0.8
LEAST_CHANCE = 1e-15  # of one p-value: below it, the tangent is infinite
MOST_CHANCE = 0.95  # of one p-value in a combination: a gain in one score must not outweigh a loss in another
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Effect(ABC):
    """How two runs differ on the same rows.

    Attributes:
        points: new minus old, on average.
        low, high: of the 95 % interval.
        p_worse, p_better: one-sided.
        error: standard error of `points`.
        rows: how many were paired.
        flips: rows that lost points, and rows that gained some; None where no points by row were at hand.
    """

    points: float
    low: float
    high: float
    p_worse: float
    p_better: float
    error: float
    rows: int
    flips: tuple[int, int] | None

    @abstractmethod
    def smallest(self, alpha: float, margin: float) -> float:
        """The smallest drop, in points, that is called worse four times in five: significant at `alpha`, and of the margin."""


def critical_value(alpha: float, df: float, tail: float = 1.0) -> float:
    """How many standard errors below what is expected a score must lie to be called worse, by gate or bound.

    Args:
        alpha: the chance that a healthy score lies there.
        df: degrees of freedom of the standard error.
        tail: by how much bad trainings are worse than normal noise would have them (`tunegrid.results.noise.tail`).
    """
    return -tail * float(special.stdtrit(df, alpha))


@dataclass(frozen=True, kw_only=True)
class TrainingEffect(Effect):
    """An effect held to training noise.

    Attributes:
        df: degrees of freedom of the noise.
        tail: by how much it reaches further down than normal noise.
    """

    df: float
    tail: float = 1.0

    def critical(self, alpha: float) -> float:
        """How many standard errors a drop must have to be significant."""
        return critical_value(alpha, self.df, self.tail)

    def smallest(self, alpha: float, margin: float) -> float:
        """As `Effect.smallest`: the drop that must be seen, and what noise takes from a true one of five times in four."""
        seen = max(self.critical(alpha) * self.error, margin)
        return float(max(seen + special.ndtri(POWER) * self.error, 100 / self.rows))


@dataclass(frozen=True, kw_only=True)
class RowEffect(Effect):
    """An effect held to the rows' own changes.

    Attributes:
        jump: by how many points a changed row moves: the mean of squares over the mean; 100 where none changed.
    """

    jump: float = 100.0

    def smallest(self, alpha: float, margin: float) -> float:
        """As `Effect.smallest`.

        Larger drops add variance, so it is solved iteratively: each row that changes moves by `jump` points (for hits and
        misses this is the sample size formula of Lachin 1992).
        """
        quantile, beta = special.ndtri(1 - alpha), special.ndtri(POWER)
        noise, drop = self.rows * self.error**2, 100 / self.rows
        for _ in range(100):
            noisier = noise + drop * self.jump
            drop = float(quantile * np.sqrt(noisier) + beta * np.sqrt(max(0.0, noisier - drop**2))) / np.sqrt(self.rows)
        return float(max(drop, margin + beta * self.error, 100 / self.rows))


def by_training(
    points: float, error: float, df: float, *, rows: int, flips: tuple[int, int] | None, tail: float = 1.0
) -> TrainingEffect:
    """An effect of `points`, whose standard error by training noise rests on `df` degrees of freedom (Student 1908).

    A drop is held to the noise's `tail`, too. The ends of the interval belong to the two one-sided tests: a run that trained
    badly may be better than it looks.
    """
    return TrainingEffect(
        points=points,
        low=points - critical_value(ALPHA / 2, df) * error,
        high=points + critical_value(ALPHA / 2, df, tail) * error,
        p_worse=float(special.stdtr(df, points / error / tail)),
        p_better=float(special.stdtr(df, -points / error)),
        error=error,
        rows=rows,
        flips=flips,
        df=df,
        tail=tail,
    )


def row_deviation(gains: Sequence[Array]) -> float:
    """A run's deviation in points by single rows alone, from the paired gains of like runs: at least this much is noise.

    Without a change, rows gain and lose alike, so the side that moved less tells the noise of both: twice its squares is the
    variance of a difference of two runs. Rows that a change makes worse, or better, do not count.
    """
    sides = [[(np.maximum(sign * each, 0) ** 2).sum() / len(each) ** 2 for each in gains] for sign in (1, -1)]
    return float(min(np.mean(side) for side in sides) ** 0.5)


def paired(old: Sequence[float], new: Sequence[float]) -> RowEffect:
    """The effect on one metric; hits and misses (all 0 or 100) go to McNemar's test, anything else to the bootstrap.

    Raises:
        ValueError: where the two differ in length, or a point is not a number.
    """
    gains = gains_of(old, new)
    means = resampled_means(gains)
    binary = all(np.isin(points, (0.0, 100.0)).all() for points in (old, new))
    points = float(gains.mean())
    return _effect(points, gains, means, *(mcnemar(gains) if binary else bootstrap_p(points, means)))


def gains_of(old: Sequence[float], new: Sequence[float]) -> Array:
    """New minus old points of each row; raises ValueError where the two differ in length, or a point is not a number."""
    before, after = np.asarray(old, float), np.asarray(new, float)
    if before.shape != after.shape or not np.isfinite(before).all() or not np.isfinite(after).all():
        raise ValueError("two runs pair only row by row, in numbers")
    gains: Array = after - before
    return gains


def _effect(points: float, gains: Array, means: Array, p_worse: float, p_better: float) -> RowEffect:
    low, high = interval(means)
    lost, won = int((gains < 0).sum()), int((gains > 0).sum())
    # The largest share that may flip where none of so many did, at 95 % (the rule of three; Hanley 1983).
    unseen = 100 * float(1 - ALPHA ** (1 / len(gains)))
    return RowEffect(
        points=points,
        low=low if lost else min(low, points - unseen),
        high=high if won else max(high, points + unseen),
        p_worse=p_worse,
        p_better=p_better,
        error=float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf"),
        rows=len(gains),
        flips=(lost, won),
        jump=float((gains**2).sum() / np.abs(gains).sum()) if gains.any() else 100.0,
    )


def paired_macro_f1(labels: Sequence[int], old: Sequence[int], new: Sequence[int], classes: int = 2) -> RowEffect:
    """The effect on macro F1, which is not a mean over rows: its interval comes from resamples, its p-values from permutations.

    `labels` are the true ones, from 0 to `classes` - 1.
    """
    truth = np.asarray(labels)
    before, after = np.asarray(old), np.asarray(new)
    gains = np.where(after == truth, 100.0, 0.0) - np.where(before == truth, 100.0, 0.0)
    once = np.ones((1, len(truth)))
    points = float(macro_f1(truth, after, once, classes)[0] - macro_f1(truth, before, once, classes)[0])
    if len(truth) <= SHARED:
        counts, draws = np.ones(len(truth), int), iter(_draws(len(truth)))
    else:  # rows of one label and the same two guesses are of one kind, and only their numbers matter
        (truth, before, after), counts = np.unique([truth, before, after], axis=1, return_counts=True)
        draws = _draws_of_kinds(counts)
    means = [macro_f1(truth, after, part, classes) - macro_f1(truth, before, part, classes) for part in draws]
    return _effect(points, gains, np.concatenate(means), *_permuted_macro_f1(truth, before, after, counts, points, classes))


def _permuted_macro_f1(
    truth: Array, before: Array, after: Array, counts: Any, points: float, classes: int
) -> tuple[float, float]:
    """One-sided p-values: without a change, which of a row's two answers is the new one is a coin's toss (Fisher 1935).

    `counts` are the rows of each kind.
    """
    apart = before != after
    change = np.zeros(RESAMPLES)
    rng = np.random.default_rng(SEED)
    for part in np.split(change, CHUNKS):  # views
        swapped = _tosses(rng, counts[apart], len(part))
        for label in range(classes):
            own = truth == label
            old, new = ((1.0 * (guess == label) * own, 1.0 * (guess == label) + own) for guess in (before, after))
            hits, both = (swapped @ (first - second)[apart] for first, second in zip(old, new, strict=True))
            (old_hits, old_both), (new_hits, new_both) = ([counts @ one for one in each] for each in (old, new))
            part += _f1(new_hits + hits, new_both + both) - _f1(old_hits - hits, old_both - both)
    change /= classes
    rounding = 1e-9  # the observed change, summed in another order
    worse, better = int((change <= points + rounding).sum()), int((change >= points - rounding).sum())
    return (1 + worse) / (RESAMPLES + 1), (1 + better) / (RESAMPLES + 1)


def _tosses(rng: np.random.Generator, counts: Any, times: int) -> Array:
    """How many coins of each kind show heads, at each time."""
    if (counts == 1).all():
        return rng.integers(0, 2, (times, len(counts))).astype(float)
    return rng.binomial(counts, 0.5, (times, len(counts))).astype(float)


def macro_f1(truth: Array, guess: Array, draws: Any, classes: int = 2) -> Array:
    """Points for each row of `draws`, which says how often each example counts; a class that never occurs scores 0."""
    scores: list[Array] = []
    for label in range(classes):
        hit = draws @ ((guess == label) & (truth == label)).astype(float)
        both = draws @ ((guess == label).astype(float) + (truth == label).astype(float))
        scores.append(_f1(hit, both))
    total: Array = sum(scores[1:], scores[0])
    return total / classes


def _f1(hit: Array, both: Array) -> Array:
    """F1 points of one class: rows rightly taken for it, and rows taken for it plus rows of it; 0 where there are none."""
    score: Array = np.divide(200 * hit, both, out=np.zeros_like(hit), where=both > 0)
    return score


def mcnemar(gains: Array) -> tuple[float, float]:
    """Exact, one-sided p-values of being worse and of being better. Under no change each flip is a fair coin's toss."""
    lost, won = int((gains < 0).sum()), int((gains > 0).sum())
    if not lost + won:
        return 1.0, 1.0
    worse, better = (stats.binomtest(hits, lost + won, 0.5, alternative="greater").pvalue for hits in (lost, won))
    return float(worse), float(better)


def bootstrap_p(points: float, means: Array) -> tuple[float, float]:
    """One-sided p-values from resampled means, centred on no change (Efron and Tibshirani 1993, chapter 16)."""
    if not means.any():
        return 1.0, 1.0
    centred = means - points
    worse, better = int((centred <= points).sum()), int((centred >= points).sum())
    return (1 + worse) / (RESAMPLES + 1), (1 + better) / (RESAMPLES + 1)


def resampled_means(values: Array) -> Array:
    """Means of all resamples.

    Of many rows, only how often each value is drawn matters: that is multinomial. Of many values, too, the means are normal.
    """
    count = len(values)
    if count <= SHARED:
        return np.concatenate([part.astype(float, copy=False) @ values for part in _draws(count)]) / count
    kinds, counts = np.unique(values, return_counts=True)
    if len(kinds) <= KINDS:
        return np.concatenate([part @ kinds for part in _draws_of_kinds(counts)]) / count
    return np.random.default_rng(SEED).normal(values.mean(), values.std() / count**0.5, RESAMPLES)


def resampled_sums(columns: Array) -> Array:
    """The sums (resamples, columns) of all resamples of rows (rows, columns); of many rows, they are normal."""
    if len(columns) <= SHARED:
        return np.concatenate([part.astype(float, copy=False) @ columns for part in _draws(len(columns))])
    centred = columns - columns.mean(0)
    rng = np.random.default_rng(SEED)
    return rng.multivariate_normal(columns.sum(0), centred.T @ centred, RESAMPLES, check_valid="ignore")


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
    shifts = resampled_means((totals - value * sizes) / sizes.mean())
    low, high = np.percentile(shifts, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return value, value + float(low), value + float(high)


def _draws_of_kinds(counts: Any) -> Iterator[Array]:
    """How often each resample draws a row of each kind, as `_draws`; `counts` are the rows of each kind."""
    rng, rows = np.random.default_rng(SEED), int(counts.sum())
    for _ in range(CHUNKS):
        yield rng.multinomial(rows, counts / rows, RESAMPLES // CHUNKS).astype(float)


@cache
def _draws(count: int) -> list[Any]:
    """How often each resample draws each row, in parts of shape (resamples, rows); the same draws for equal numbers of rows."""
    rng = np.random.default_rng(SEED)
    rows = RESAMPLES // CHUNKS
    shifts = np.arange(rows)[:, None] * count
    kind: type[Any] = float if count <= SMALL else np.uint8  # bytes save memory and cost a conversion
    return [
        np.bincount((rng.integers(0, count, (rows, count)) + shifts).ravel(), minlength=rows * count)
        .reshape(rows, count)
        .astype(kind)
        for _ in range(CHUNKS)
    ]


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjusted p-values by key (Holm 1979): they bound the chance of any false alarm among all tests."""
    ordered = sorted(p_values, key=lambda key: p_values[key])
    adjusted: dict[Any, float] = {}
    highest = 0.0
    for index, key in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - index) * p_values[key]))
        adjusted[key] = highest
    return adjusted


def cauchy(p_values: Sequence[float]) -> float:
    """One p-value for all: small if any is, whatever their dependence (the Cauchy combination test; Liu and Xie 2020)."""
    if not p_values:
        return 1.0
    bounded = np.clip(np.asarray(p_values, float), LEAST_CHANCE, MOST_CHANCE)
    return float(np.arctan2(1, np.mean(1 / np.tan(np.pi * bounded))) / np.pi)


def slower(old: Sequence[float], new: Sequence[float]) -> float:
    """One-sided p-value of the new run's steps taking longer (Mann and Whitney 1947)."""
    return float(stats.mannwhitneyu(new, old, alternative="greater").pvalue)
