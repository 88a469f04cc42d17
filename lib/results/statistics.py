"""Is one run worse than another, row by row? In: paired points of two runs. Out: effects with intervals and p-values.

Points are 0-100; an effect is new minus old. Hits and misses are compared by McNemar's exact test, graded scores by a paired
bootstrap. Needs numpy and scipy, no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 10_000
CHUNKS = 20  # resamples are drawn in so many parts, to bound memory
SMALL = 1000  # rows
SEED = 0
ALPHA = 0.05
POWER = 0.8
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How two runs differ on the same rows.

    Attributes:
        points: new minus old, on average.
        low, high: of the 95 % interval.
        p_worse, p_better: one-sided.
        error: standard error of `points`.
        rows: how many were paired.
        flips: rows that lost points, and rows that gained some.
        jump: by how many points a changed row moves: the mean of squares over the mean; 100 where none changed.
    """

    points: float
    low: float
    high: float
    p_worse: float
    p_better: float
    error: float
    rows: int
    flips: tuple[int, int]
    jump: float = 100.0

    def smallest(self, tests: int, margin: float) -> float:
        """The smallest drop, in points, that is called worse four times in five: significant in so many tests, over the margin.

        Larger drops add variance, so it is solved iteratively: each row that changes moves by `jump` points (for hits and
        misses this is the sample size formula of Lachin 1992).
        """
        alpha, beta = stats.norm.ppf(1 - ALPHA / tests), stats.norm.ppf(POWER)
        noise, drop = self.rows * self.error**2, 0.0
        for _ in range(100):
            noisier = noise + drop * self.jump
            drop = float(alpha * np.sqrt(noisier) + beta * np.sqrt(max(0.0, noisier - drop**2))) / np.sqrt(self.rows)
        return float(max(drop, margin + beta * self.error, 100 / self.rows))


def paired(old: Sequence[float], new: Sequence[float]) -> Effect:
    """The effect on one metric; hits and misses (all 0 or 100) go to McNemar's test, anything else to the bootstrap.

    Raises:
        ValueError: where the two differ in length, or a point is not a number.
    """
    before, after = np.asarray(old, float), np.asarray(new, float)
    if before.shape != after.shape or not np.isfinite(before).all() or not np.isfinite(after).all():
        raise ValueError("two runs pair only row by row, in numbers")
    gains = after - before
    means = resampled_means(gains)
    binary = np.isin(before, (0.0, 100.0)).all() and np.isin(after, (0.0, 100.0)).all()
    points = float(gains.mean())
    return _effect(points, gains, means, *(mcnemar(gains) if binary else bootstrap_p(points, means)))


def _effect(points: float, gains: Array, means: Array, p_worse: float, p_better: float) -> Effect:
    low, high = np.percentile(means, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return Effect(
        points=points,
        low=float(low),
        high=float(high),
        p_worse=p_worse,
        p_better=p_better,
        error=float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf"),
        rows=len(gains),
        flips=(int((gains < 0).sum()), int((gains > 0).sum())),
        jump=float((gains**2).sum() / np.abs(gains).sum()) if gains.any() else 100.0,
    )


def paired_macro_f1(labels: Sequence[int], old: Sequence[int], new: Sequence[int], classes: int = 2) -> Effect:
    """The effect on macro F1, which is not a mean over rows: it is computed anew on every resample.

    It depends on the same flips as accuracy, so its p-values are never below those of McNemar's exact test.
    `labels` are the true ones, from 0 to `classes` - 1.
    """
    truth = np.asarray(labels)
    before, after = np.asarray(old), np.asarray(new)
    gains = np.where(after == truth, 100.0, 0.0) - np.where(before == truth, 100.0, 0.0)
    means = resampled_macro_f1(truth, after, classes) - resampled_macro_f1(truth, before, classes)
    once = np.ones((1, len(truth)))
    points = float(macro_f1(truth, after, once, classes)[0] - macro_f1(truth, before, once, classes)[0])
    worse, better = (max(pair) for pair in zip(bootstrap_p(points, means), mcnemar(gains), strict=True))
    return _effect(points, gains, means, worse, better)


def macro_f1(truth: Array, guess: Array, draws: Any, classes: int = 2) -> Array:
    """Points for each row of `draws`, which says how often each example counts; a class that never occurs scores 0."""
    scores: list[Array] = []
    for label in range(classes):
        hit = draws @ ((guess == label) & (truth == label)).astype(float)
        both = draws @ ((guess == label).astype(float) + (truth == label).astype(float))
        scores.append(np.divide(200 * hit, both, out=np.zeros_like(hit), where=both > 0))
    total: Array = sum(scores[1:], scores[0])
    return total / classes


def resampled_macro_f1(truth: Array, guess: Array, classes: int = 2) -> Array:
    """Macro F1 of all resamples."""
    return np.concatenate([macro_f1(truth, guess, part, classes) for part in _draws(len(truth))])


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
    """Means of all resamples."""
    return np.concatenate([part.astype(float, copy=False) @ values for part in _draws(len(values))]) / len(values)


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
    for place, key in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - place) * p_values[key]))
        adjusted[key] = highest
    return adjusted


def noise_of_training(scores: Sequence[float], tests: int) -> float:
    """How far apart two trainings can score that differ in their seed alone, over so many tests; 0 for fewer than two scores.

    The difference of two draws has the deviation of one times the root of 2. A few seeds give only a rough deviation; Student's
    t accounts for that.
    """
    if len(scores) < 2:
        return 0.0
    deviation = float(np.std(scores, ddof=1))
    return float(stats.t.ppf(1 - ALPHA / tests, len(scores) - 1) * np.sqrt(2) * deviation)


def slower(old: Sequence[float], new: Sequence[float]) -> float:
    """One-sided p-value of the new run's steps taking longer (Mann and Whitney 1947)."""
    return float(stats.mannwhitneyu(new, old, alternative="greater").pvalue)
