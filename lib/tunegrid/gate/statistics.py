"""Effects with intervals and p-values: points, 0-100, new minus old.

Both runs have the same test rows, so that these add no error of their own to that of training noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from scipy import special

from tunegrid.gate.noise import POINTS, Scale

ALPHA = 0.05
POWER = 0.8
TINY = 1e-300  # of an error of 0, which divides nothing
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
    before: float = 0.0  # the old mean
    df: float = np.inf  # degrees of freedom of training noise; infinitely many if single rows were compared
    scale: Scale = POINTS

    def detectable_drop(self, alpha: float, margin: float) -> float:
        """The smallest drop that is called worse four times in five: significant at `alpha`, and of the margin."""
        error, shift = self.error * self.scale.per_point(self.before), self.scale.shift
        limit = min(shift(self.before, -critical_value(alpha, self.df) * error), self.before - margin)
        return max(self.before - shift(limit, -float(special.ndtri(POWER)) * error), margin)  # less than it never counts


def critical_value(alpha: float, df: float) -> float:
    """How many standard errors below what is expected a healthy score lies with a chance of `alpha`, by gate and bound."""
    return -float(special.stdtrit(df, alpha))


def by_training(before: float, after: float, error: float, df: float, scale: Scale) -> Effect:
    """Two mean scores, held to a standard error on their scale that rests on `df` degrees of freedom (Student 1908)."""
    reach, distance = critical_value(ALPHA / 2, df) * error, (scale.position(after) - scale.position(before)) / max(error, TINY)
    low, high = (scale.shift(after, side * reach) - before for side in (-1, 1))
    tested = {"p_worse": float(special.stdtr(df, distance)), "p_better": float(special.stdtr(df, -distance))}
    error /= scale.per_point(before)
    return Effect(points=after - before, low=low, high=high, **tested, error=error, before=before, df=df, scale=scale)


def row_deviation(gains: Sequence[Array]) -> float:
    """A run's deviation in points by single rows alone, from the paired gains of like runs: at least this much is noise.

    Without a change, rows gain and lose alike, so the side that moved less tells the noise of both: twice its squares is the
    variance of a difference of two runs. Rows that a change makes worse, or better, do not count.
    """
    variances = [[(np.maximum(sign * gain, 0) ** 2).sum() / len(gain) ** 2 for gain in gains] for sign in (1, -1)]
    return float(min(np.mean(side) for side in variances) ** 0.5)


def by_rows(gains: Array) -> Effect:
    """The effect of rows' gains, new minus old: over so many rows, their mean is normal (central limit theorem)."""
    error = float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else np.inf
    return by_training(0.0, float(gains.mean()), error, np.inf, POINTS)


def ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float, float]:
    """A sum over rows per item, and its 95 % interval, for which the ratio is taken to be linear and the mean to be normal."""
    totals, sizes = np.asarray(sums, float), np.asarray(counts, float)
    value = float(totals.sum() / sizes.sum())
    if not np.isfinite(totals).all():
        return value, value, value
    effect = by_rows((totals - value * sizes) / sizes.mean())
    return value, value + effect.low, value + effect.high


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjusted p-values by key (Holm 1979): they bound the chance of any false alarm among all tests."""
    keys = sorted(p_values, key=lambda key: p_values[key])
    steps = [min(1.0, (len(keys) - index) * p_values[key]) for index, key in enumerate(keys)]
    return dict(zip(keys, accumulate(steps, max), strict=True))
