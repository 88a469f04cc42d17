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
        rows: how many rows were paired.
        flips: rows that lost and rows that gained.
        jump: how far a row that changes goes, in points: the mean of squares over the mean; 100 where none changed.
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
        """The smallest drop, in points, called worse four times in five: over the margin, and no chance in so many tests.

        A drop is made of rows that fall, as far as rows fall or rise here on average, and brings their noise with it: it is a
        fixed point (for hits and misses, the sample size formula of Lachin 1992).
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
    p_worse, p_better = mcnemar(gains) if binary else bootstrap_p(gains, means)
    low, high = np.percentile(means, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return Effect(
        points=float(gains.mean()),
        low=float(low),
        high=float(high),
        p_worse=p_worse,
        p_better=p_better,
        error=float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf"),
        rows=len(gains),
        flips=(int((gains < 0).sum()), int((gains > 0).sum())),
        jump=float((gains**2).sum() / np.abs(gains).sum()) if gains.any() else 100.0,
    )


def mcnemar(gains: Array) -> tuple[float, float]:
    """Exact, one-sided p-values that the new run is worse, or better: the flips are tosses of a fair coin if it is neither."""
    lost, won = int((gains < 0).sum()), int((gains > 0).sum())
    if not lost + won:
        return 1.0, 1.0
    worse, better = (stats.binomtest(hits, lost + won, 0.5, alternative="greater").pvalue for hits in (lost, won))
    return float(worse), float(better)


def bootstrap_p(gains: Array, means: Array) -> tuple[float, float]:
    """One-sided p-values from resampled means, centred as if nothing had changed (Efron and Tibshirani 1993, chapter 16)."""
    if not gains.any():
        return 1.0, 1.0
    mean = gains.mean()
    centred = means - mean
    worse, better = int((centred <= mean).sum()), int((centred >= mean).sum())
    return (1 + worse) / (RESAMPLES + 1), (1 + better) / (RESAMPLES + 1)


def resampled_means(values: Array) -> Array:
    """Means of all resamples."""
    return np.concatenate([part.astype(float, copy=False) @ values for part in _draws(len(values))]) / len(values)


@cache
def _draws(count: int) -> list[Any]:
    """How often each resample draws each row, in parts (resamples, rows): the same for all metrics and cells of so many."""
    rng = np.random.default_rng(SEED)
    rows = RESAMPLES // CHUNKS
    shifts = np.arange(rows)[:, None] * count
    kind: type[Any] = float if count <= SMALL else np.uint8  # a large test set costs a byte a draw, and a conversion
    return [
        np.bincount((rng.integers(0, count, (rows, count)) + shifts).ravel(), minlength=rows * count)
        .reshape(rows, count)
        .astype(kind)
        for _ in range(CHUNKS)
    ]


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
