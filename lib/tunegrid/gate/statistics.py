"""Computes effects (new minus old) with intervals and p-values. Scores are in points, 0-100.

Both runs use the same test rows, so the rows add no error beyond training noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from scipy import special

from tunegrid.gate.noise import POINT_SCALE, Scale

ALPHA = 0.05
POWER = 0.8
TINY = 1e-300  # replaces an error of 0, to avoid dividing by it
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The difference between two runs on the same rows."""

    points: float  # new minus old, on average
    low: float  # lower end of the 95 % interval
    high: float
    p_worse: float  # one-sided, like p_better
    p_better: float
    error: float  # the standard error of `points`
    before: float = 0.0  # the old mean
    # Degrees of freedom of the training noise; infinite if single rows were compared.
    df: float = np.inf
    scale: Scale = POINT_SCALE

    def detectable_drop(self, alpha: float, margin: float) -> float:
        """The smallest drop that is called worse four times in five.

        A drop is called worse if it is significant at `alpha` and no smaller than the margin.
        """
        error = self.error * self.scale.per_point(self.before)
        limit = self.scale.shift(self.before, -critical_value(alpha, self.df) * error)
        limit = min(limit, self.before - margin)
        detected = self.scale.shift(limit, -float(special.ndtri(POWER)) * error)
        return max(self.before - detected, margin)  # smaller drops than the margin never count


def critical_value(alpha: float, df: float) -> float:
    """The one-sided critical value of Student's t, in standard errors.

    A healthy score falls this far below the mean with probability `alpha`.
    """
    return -float(special.stdtrit(df, alpha))


def by_training(before: float, after: float, error: float, df: float, scale: Scale) -> Effect:
    """The effect between two mean scores, given its standard error on `scale` (Student 1908)."""
    reach = critical_value(ALPHA / 2, df) * error
    distance = (scale.position(after) - scale.position(before)) / max(error, TINY)
    return Effect(
        points=after - before,
        low=scale.shift(after, -reach) - before,
        high=scale.shift(after, reach) - before,
        p_worse=float(special.stdtr(df, distance)),
        p_better=float(special.stdtr(df, -distance)),
        error=error / scale.per_point(before),
        before=before,
        df=df,
        scale=scale,
    )


def row_deviation(gains: Sequence[Array]) -> float:
    """A lower estimate of the standard deviation of a run's score due to noise, in points.

    It is computed from each row's gain between paired runs. If nothing but noise differs, gains and
    losses are equally large on average, and the sum of squares of either, divided by the squared
    number of rows, estimates the variance of one run. A real change inflates only one of the two,
    so the smaller estimate is used.
    """
    variances = []
    for sign in (1, -1):
        sides = [np.maximum(sign * gain, 0) for gain in gains]
        variances.append(np.mean([(side**2).sum() / len(side) ** 2 for side in sides]))
    return float(min(variances) ** 0.5)


def by_rows(gains: Array) -> Effect:
    """The effect of the rows' mean gain, assumed to be normal (central limit theorem)."""
    error = float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else np.inf
    return by_training(0.0, float(gains.mean()), error, np.inf, POINT_SCALE)


def ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of two sums, with its 95 % interval (delta method, normal approximation)."""
    totals = np.asarray(sums, float)
    sizes = np.asarray(counts, float)
    value = float(totals.sum() / sizes.sum())
    if not np.isfinite(totals).all():
        return value, value, value
    effect = by_rows((totals - value * sizes) / sizes.mean())
    return value, value + effect.low, value + effect.high


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjusts p-values so that the chance of any false alarm is bounded (Holm 1979)."""
    keys = sorted(p_values, key=lambda key: p_values[key])
    steps = [min(1.0, (len(keys) - index) * p_values[key]) for index, key in enumerate(keys)]
    return dict(zip(keys, accumulate(steps, max), strict=True))
