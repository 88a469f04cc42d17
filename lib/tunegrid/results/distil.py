"""Says whether a teacher helps: test points of cells trained with and without one, by seed, give a gain with its interval.

A seed trains twice from one start, on one order of rows, so that gains pair by seed and by row. Two chances make a gain
uncertain: other test rows, and other seeds. The interval holds for both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tunegrid.results.compare import Gap, combined, row_error
from tunegrid.results.noise import deviation, resolution
from tunegrid.results.statistics import gains_of
from tunegrid.results.table import Column, lines, number, signed

Points = Sequence[float]  # of the main score, by row
COLUMNS = (
    Column(title="seed", width=5),
    Column(title="teacher"),
    Column(title="scores", right=True),
    Column(title="alone", width=6, right=True),
    Column(title="distilled", right=True),
    Column(title="gain", width=6, right=True),
)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a teacher did to one seed: scores on test rows.

    Attributes:
        name, score: the teacher's.
        alone, distilled: points of the same cell trained without and with it, by row.
    """

    seed: int | None
    name: str
    score: float
    alone: Points
    distilled: Points

    @property
    def line(self) -> tuple[str, ...]:
        """Its row of the table."""
        return line_of(f"{self.seed}", self.name, self.score, fmean(self.alone), fmean(self.distilled))


def line_of(seed: str, teacher: str, score: float, alone: float, distilled: float) -> tuple[str, ...]:
    """A row of the table."""
    return (seed, teacher, *(number(each, 2) for each in (score, alone, distilled)), signed(distilled - alone, 2))


def gain_of(lessons: Sequence[Lesson]) -> Gap:
    """The mean gain over seeds; of one seed, its interval is over test rows alone."""
    gains = np.stack([gains_of(lesson.alone, lesson.distilled) for lesson in lessons])
    seeds = deviation([gains.mean(1).tolist()])
    least = resolution(gains.shape[1])
    errors = [row_error(gains.mean(0)), *([(max(seeds.sd, least) ** 2 / len(gains), seeds.df)] if seeds else [])]
    error, df = combined(errors)
    by = f"{f'{len(gains)} seeds and ' if seeds else ''}{gains.shape[1]} test rows"
    return Gap(points=float(gains.mean()), error=error, df=df, by=by)


@dataclass(frozen=True, kw_only=True)
class DistilResult:
    """A cell distilled from a teacher, beside itself trained without one."""

    cell: str
    teacher: str
    metric: str
    alpha: float
    temperature: float
    lessons: Sequence[Lesson]

    @property
    def gain(self) -> Gap:
        """Over all seeds."""
        return gain_of(self.lessons)

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        interval, unknown = self.gain.interval, "cannot be told to help or to harm"
        if len(self.lessons) < 2:
            return f"{unknown} by one seed"
        return "helps" if interval.low > 0 else "harms" if interval.high < 0 else unknown

    @property
    def sentence(self) -> str:
        """The verdict, and the figures behind it."""
        gain, interval = self.gain, self.gain.interval
        return (
            f"{self.teacher} as the teacher of {self.cell} (alpha {self.alpha:g}, temperature {self.temperature:g}) "
            f"{self.verdict}: {gain.points:+.2f} points of {self.metric} ({interval.low:+.2f} to {interval.high:+.2f}, "
            f"{gain.by}, paired)"
        )

    @property
    def mean_line(self) -> tuple[str, ...]:
        """The table's last row: means over seeds."""
        each = [(lesson.score, fmean(lesson.alone), fmean(lesson.distilled)) for lesson in self.lessons]
        return line_of("mean", self.teacher, *map(fmean, zip(*each, strict=True)))

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {**asdict(self), "gain": {**asdict(self.gain), **asdict(self.gain.interval)}}

    def as_text(self) -> str:
        """A line for each seed, one of their means, and the sentence."""
        return "\n".join([*lines(COLUMNS, [*(lesson.line for lesson in self.lessons), self.mean_line]), self.sentence])
