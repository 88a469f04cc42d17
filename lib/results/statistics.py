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
        rows: how many rows were paired.
        flips: rows that lost and rows that gained.
    """

    points: float
    low: float
    high: float
    p_worse: float
    p_better: float
    error: float
    rows: int
    flips: tuple[int, int]

    def smallest(self, tests: int) -> float:
        """The smallest drop, in points, that so many tests together would call significant four times in five."""
        z = stats.norm.ppf(1 - ALPHA / tests) + stats.norm.ppf(POWER)
        return float(z * max(self.error, 100 / self.rows / 2))


def paired(old: Sequence[float], new: Sequence[float]) -> Effect:
    """The effect on one metric; hits and misses (all 0 or 100) go to McNemar's test, anything else to the bootstrap.

    Raises:
        ValueError: where the two differ in length, or a point is not a number.
    """
    before, after = np.asarray(old, float), np.asarray(new, float)
    if before.shape != after.shape or not np.isfinite(before).all() or not np.isfinite(after).all():
        raise ValueError("two runs pair only row by row, in numbers")
    gains = after - before
    binary = np.isin(before, (0.0, 100.0)).all() and np.isin(after, (0.0, 100.0)).all()
    p_worse, p_better = mcnemar(gains) if binary else bootstrap_p(gains)
    low, high = interval(gains)
    return Effect(
        points=float(gains.mean()),
        low=low,
        high=high,
        p_worse=p_worse,
        p_better=p_better,
        error=float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf"),
        rows=len(gains),
        flips=(int((gains < 0).sum()), int((gains > 0).sum())),
    )


def mcnemar(gains: Array) -> tuple[float, float]:
    """Exact, one-sided p-values that the new run is worse, or better: the flips are tosses of a fair coin if it is neither."""
    lost, won = int((gains < 0).sum()), int((gains > 0).sum())
    if not lost + won:
        return 1.0, 1.0
    worse, better = (stats.binomtest(hits, lost + won, 0.5, alternative="greater").pvalue for hits in (lost, won))
    return float(worse), float(better)


def bootstrap_p(gains: Array) -> tuple[float, float]:
    """One-sided p-values from resamples of the centred gains (Efron and Tibshirani 1993, chapter 16)."""
    if not gains.any():
        return 1.0, 1.0
    centred = resampled_means(gains - gains.mean())
    mean = gains.mean()
    return float((1 + (centred <= mean).sum()) / (RESAMPLES + 1)), float((1 + (centred >= mean).sum()) / (RESAMPLES + 1))


def interval(gains: Array) -> tuple[float, float]:
    """The 95 % percentile interval of the mean gain."""
    low, high = np.percentile(resampled_means(gains), [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


def resampled_means(values: Array) -> Array:
    """Means of all resamples."""
    counts = _draws(len(values))
    return np.concatenate([part.astype(float) @ values for part in np.split(counts, CHUNKS)]) / len(values)


@cache
def _draws(count: int) -> Any:
    """How often each resample draws each row (resamples, rows): the same for all metrics and cells with so many rows."""
    rng = np.random.default_rng(SEED)
    rows = RESAMPLES // CHUNKS
    shifts = np.arange(rows)[:, None] * count
    parts = [
        np.bincount((rng.integers(0, count, (rows, count)) + shifts).ravel(), minlength=rows * count) for _ in range(CHUNKS)
    ]
    return np.concatenate(parts).astype(np.uint8).reshape(RESAMPLES, count)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjusted p-values by key (Holm 1979): the chance of any false alarm among them is held, not of each."""
    ordered = sorted(p_values, key=lambda key: p_values[key])
    adjusted: dict[Any, float] = {}
    highest = 0.0
    for place, key in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - place) * p_values[key]))
        adjusted[key] = highest
    return adjusted


def slower(old: Sequence[float], new: Sequence[float]) -> float:
    """One-sided p-value that steps of the new run take longer (Mann and Whitney 1947)."""
    return float(stats.mannwhitneyu(new, old, alternative="greater").pvalue)
