"""Makes bounds and noise, two TOML files, of runs of a grid: the suite's own or, by `tunegrid calibrate`, a user's cells.

Scores are points, 0-100. A run of the grid is its records by cell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from statistics import fmean, stdev

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.noise import PERTURBED, SEEDS, Deviation, Groups, Noise, NoiseKey, deviation
from tunegrid.results.statistics import critical_value
from tunegrid.results.thresholds import LAB_CALIBRATE

HEALTHY_MISSES = 0.02  # the chance that a healthy run of the whole grid misses any bound
CONTROL_SHARE = 1 / 3  # of the way from the mean to what a control reaches: a bound below it is blunt
LEAST_ROOM = 1.0  # points; another CPU rounds differently
RecordsByCell = Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The least score of a healthy run, in points, rounded down to a tenth."""

    minimum: float
    healthy: float  # the least that is safe for a healthy run; above it, `minimum` is there for the controls' sake

    @property
    def blunt(self) -> bool:
        """Whether training noise is too large for a bound that both healthy runs reach and controls miss by far."""
        return self.minimum > self.healthy


def bound_of(
    scores: Sequence[float], noise: Deviation, bounds: int, control: float | None = None, share: float = CONTROL_SHARE
) -> Bound:
    """The bound of one score.

    A new observation deviates from the mean of n by noise * sqrt(1 + 1 / n); the gate's critical value bounds it at
    `HEALTHY_MISSES`, shared by all `bounds` that a run must meet (Bonferroni). It lies at most so far (`share`) on the way from
    the mean to the best score of a `control`.
    """
    mean = fmean(scores)
    errors = critical_value(HEALTHY_MISSES / bounds, noise.df, noise.tail)
    healthy = mean - max(errors * noise.sd * math.sqrt(1 + 1 / len(scores)), LEAST_ROOM)
    sharp = -math.inf if control is None else mean - share * (mean - control)
    return Bound(minimum=_floor(max(healthy, sharp)), healthy=_floor(healthy))


def _floor(points: float) -> float:
    """Points rounded down to a tenth; no score is below 0. The inner rounding keeps 2.3 from becoming 2.2."""
    return max(0.0, math.floor(round(points * 10, 6)) / 10)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Runs of one grid."""

    seeds: Sequence[RecordsByCell]  # first those of all cells, then those of cells that need more
    perturbed: Mapping[int, Sequence[RecordsByCell]] = field(default_factory=dict)  # by seed: its run, and from moved starts
    controls: Mapping[NoiseKey, float] = field(default_factory=dict)  # the best score of any control, by cell and score
    control_share: float = CONTROL_SHARE  # of the way from the mean to a control, beyond which no bound lies

    def scores(self, cell: str, metric: str) -> list[float]:
        """One score, by seed, of the runs that trained the cell; raises InputError if one of them lacks it."""
        return [score_of(grid, cell, metric) for grid in self.seeds if cell in grid]

    def tested(self) -> list[NoiseKey]:
        """Every cell and bounded score."""
        return [(cell, metric) for cell, record in self.seeds[0].items() for metric in record.bounded_scores]

    def rows(self) -> dict[str, int]:
        """Test rows by task; raises InputError if a record does not say."""
        rows = {}
        for record in self.seeds[0].values():
            if record.data is None:
                raise InputError(f"{record.cell} does not say which rows it was scored on; calibrate from complete runs only")
            rows[record.task] = record.data.rows["test"]
        return rows

    @cached_property
    def noise(self) -> Noise:
        """Both kinds of training noise."""
        scores: dict[str, dict[NoiseKey, Groups]] = {
            SEEDS: {key: [self.scores(*key)] for key in self.tested()},
            PERTURBED: {key: [[score_of(grid, *key) for grid in g] for g in self.perturbed.values()] for key in self.tested()},
        }
        return Noise(
            profile=next(iter(self.seeds[0].values())).profile,
            rows=self.rows(),
            measured={kind: {key: d for key, own in keys.items() if (d := deviation(own))} for kind, keys in scores.items()},
            scores=scores,
        )

    def bounds(self) -> dict[NoiseKey, Bound]:
        """Every bound, from noise between seeds."""
        count, pools = len(self.noise.measured[SEEDS]), self.noise.pools[SEEDS]
        return {
            key: bound_of(self.scores(*key), pools[key], count, self.controls.get(key), self.control_share)
            for key in self.noise.measured[SEEDS]
        }


def score_of(grid: RecordsByCell, cell: str, metric: str) -> float:
    """One score of a finished cell; raises InputError if the run has none."""
    score = grid[cell].scores.get(metric) if cell in grid else None
    if score is None:
        raise InputError(f"{cell} left no {metric} in one of the runs; calibrate from complete runs only")
    return score


# Files


def thresholds_toml(calibration: Calibration, command: str = LAB_CALIBRATE) -> str:
    """The file of bounds, which says by which command it was written."""
    share = f"{calibration.control_share:.0%} of the way to `control`, the best score of a control."
    lines = [
        f"# Written by `{command}`. Scores are points, 0-100. Made so that a healthy run of the whole",
        "# grid misses any with a chance of 2 %: the mean minus a t quantile of a new observation, by the noise between",
        "# seeds (pooled over the cells of a kind).",
        *(["# But no bound lies farther from the mean than", f"# {share}"] if calibration.controls else []),
        *evidence(calibration),
    ]
    for (cell, metric), bound in calibration.bounds().items():
        lines += ["", f"[cells.{cell}]"] if f"[cells.{cell}]" not in lines else []
        scores, control = calibration.scores(cell, metric), calibration.controls.get((cell, metric))
        lines.append(
            f"{metric} = {{ minimum = {bound.minimum:.1f}, mean = {fmean(scores):.2f}, sd = {stdev(scores):.2f}, "
            f"scores = [{scores_toml(scores)}]{'' if control is None else f', control = {control:.2f}'} }}"
        )
    return "\n".join(lines) + "\n"


def scores_toml(scores: Sequence[float]) -> str:
    """With two digits."""
    return ", ".join(f"{score:.2f}" for score in scores)


def evidence(calibration: Calibration) -> list[str]:
    """Where the figures come from: device, date, versions, and the seeds of all cells and of single ones."""
    cells, seeds = calibration.seeds[0].keys(), calibration.seeds
    firsts = [next(iter(grid.values()), None) for grid in seeds if grid.keys() == cells]
    more = {cell: [grid[cell].seeds.seed for grid in seeds if cell in grid and grid.keys() != cells] for cell in cells}
    return [
        "[evidence]",
        *origin(firsts[0]),
        f"seeds = {[record.seeds.seed for record in firsts if record]}",
        *(f"more_seeds.{cell} = {own}" for cell, own in more.items() if own),
    ]


def origin(first: Record | None) -> list[str]:
    """Profile, date, device and versions of a record; raises InputError if it names no device."""
    if first is None or first.device is None:
        raise InputError("the first run does not name its device; calibrate from complete runs only")
    packages = ", ".join(f'{name} = "{version}"' for name, version in first.versions.items() if version)
    return [
        f'profile = "{first.profile}"',
        f'date = "{date.today()}"',
        f'device = "{first.device.name}, {first.device.threads} thread per process"',
        f"versions = {{ {packages} }}",
    ]
