"""Says what lies between two trained models: points of rows at each place give a choice, its gain, and a barrier.

The place is chosen on validation rows, and only it and the ends are scored on test rows, once. The gain is the best place
between the ends minus the better end, paired by row. The barrier is how far scores fall below the straight line between the
ends (Frankle et al. 2020, "Linear Mode Connectivity"), at the place where they fall most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tunegrid.results.statistics import ALPHA, RowEffect, paired, resampled_means
from tunegrid.results.table import Column, lines, number, signed

SHARES = tuple(round(0.1 * step, 1) for step in range(11))
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
Points = Sequence[float]
COLUMNS = (
    Column(title="what", width=8),
    Column(title="at", width=5, right=True),
    Column(title="validation", width=10, right=True),
    Column(title="test", width=6, right=True),
)


@dataclass(frozen=True, kw_only=True)
class Barrier:
    """How far scores fall below the straight line between the ends, in points, at the share where they fall most.

    Attributes:
        low, high: of the 95 % interval over validation rows, wider by Bonferroni, since it is the worst of several places.
    """

    share: float
    points: float
    low: float
    high: float

    @property
    def seen(self) -> bool:
        """Whether it is more than the noise of rows."""
        return self.low > 0


def barrier(points: Mapping[float, Points]) -> Barrier:
    """The barrier of a path, of each place's points by row; the ends are 0 and 1."""
    first, last = (np.asarray(points[end], float) for end in (0.0, 1.0))
    falls = {share: (1 - share) * first + share * last - np.asarray(own) for share, own in points.items() if 0 < share < 1}
    worst = max(falls, key=lambda share: falls[share].mean())
    tail = 100 * ALPHA / 2 / len(falls)
    low, high = np.percentile(resampled_means(falls[worst]), [tail, 100 - tail])
    return Barrier(share=worst, points=float(falls[worst].mean()), low=float(low), high=float(high))


def chosen(points: Mapping[float, Points]) -> tuple[float, float]:
    """The better end, and the best place that is none, by mean points; of equal ones the first."""
    middle = [share for share in points if 0 < share < 1]
    return max((0.0, 1.0), key=lambda end: fmean(points[end])), max(middle, key=lambda share: fmean(points[share]))


@dataclass(frozen=True, kw_only=True)
class PathResult:
    """A path between two models.

    Attributes:
        first, second: names of the ends; `score` is the main score.
        validation: the mean score at each share of the way.
        test: the same on test rows, of both ends and the place that was chosen.
        better_end, chosen: shares, by validation rows.
        gain: of the chosen place over the better end, on test rows.
        scales: the mean score on validation rows of the first model's adapter at each scale; empty without one.
    """

    first: str
    second: str
    score: str
    validation: Mapping[float, float]
    test: Mapping[float, float]
    better_end: float
    chosen: float
    gain: RowEffect
    barrier: Barrier
    scales: Mapping[float, float]

    @property
    def sentences(self) -> list[str]:
        """What the path says."""
        gain, fall = self.gain, self.barrier
        beats = "beats" if gain.low > 0 else "is worse than" if gain.high < 0 else "cannot be told from"
        return [
            f"{self.chosen:g} of the way from {self.first} to {self.second} {beats} {self._better}: "
            f"{gain.points:+.2f} points of {self.score} ({gain.low:+.2f} to {gain.high:+.2f}, {gain.rows} test rows, paired)",
            f"{'a barrier' if fall.seen else 'no barrier that rows show'}: at {fall.share:g} the score is {-fall.points:+.2f} "
            f"points off the straight line ({-fall.high:+.2f} to {-fall.low:+.2f}, validation rows)",
        ]

    @property
    def _better(self) -> str:
        """The better end, and by which rows: test rows may see it otherwise."""
        name = self.second if self.better_end else self.first
        turned = self.test[1.0 - self.better_end] > self.test[self.better_end]
        return f"{name}, the better end on validation rows{', but not on test rows' * turned}"

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self)

    def as_text(self) -> str:
        """A table and the sentences."""
        steps = [("path", f"{at:g}", number(mean, 2), number(self.test.get(at), 2)) for at, mean in self.validation.items()]
        steps += [("scale", f"{at:g}", number(mean, 2), "-") for at, mean in self.scales.items()]
        return "\n".join([*lines(COLUMNS, steps), *self.sentences])


def path_result(
    names: tuple[str, str],
    score: str,
    validation: Mapping[float, Points],
    test: Mapping[float, Points],
    scales: Mapping[float, Points],
) -> PathResult:
    """The result of points by row; `test` holds both ends and the chosen place."""
    end, place = chosen(validation)
    return PathResult(
        first=names[0],
        second=names[1],
        score=score,
        validation={share: fmean(points) for share, points in validation.items()},
        test={share: fmean(points) for share, points in test.items()},
        better_end=end,
        chosen=place,
        gain=paired(test[end], test[place]),
        barrier=barrier(validation),
        scales={scale: fmean(points) for scale, points in scales.items()},
    )


@dataclass(frozen=True, kw_only=True)
class SoupResult:
    """The mean of several models beside each of them, on test rows; `best` is the best one on validation rows."""

    score: str
    test: Mapping[str, float]
    soup: float
    best: str
    gain: RowEffect

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self)

    def as_text(self) -> str:
        """A line for each model, and what their mean gains."""
        gain = self.gain
        rows = [(name, "-", "-", number(score, 2)) for name, score in self.test.items()]
        told = f"the mean of {len(self.test)} models gains {signed(gain.points, 2)} points of {self.score} over {self.best},"
        interval = f"the best on validation rows ({gain.low:+.2f} to {gain.high:+.2f}, {gain.rows} test rows, paired)"
        return "\n".join([*lines(COLUMNS, [*rows, ("mean", "-", "-", number(self.soup, 2))]), f"{told} {interval}"])


def soup_result(score: str, validation: Mapping[str, Points], test: Mapping[str, Points], soup: Points) -> SoupResult:
    """The result of points by row; `soup` are those of the mean on test rows."""
    best = max(validation, key=lambda name: fmean(validation[name]))
    return SoupResult(
        score=score,
        test={name: fmean(points) for name, points in test.items()},
        soup=fmean(soup),
        best=best,
        gain=paired(test[best], soup),
    )
