"""Makes bounds, a TOML file, and noise of runs of the suite's grid or a user's (`tunegrid calibrate`), in points, 0-100."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from statistics import fmean, stdev

from tunegrid.errors import InputError
from tunegrid.gate.noise import PERTURBED, SEEDS, Deviation, Noise, NoiseKey, Scale
from tunegrid.gate.thresholds import LAB_CALIBRATE
from tunegrid.record import Record
from tunegrid.runs.files import recipe_digest

HEALTHY_MISSES = 0.02  # the chance that a healthy run of the whole grid misses any bound
CONTROL_SHARE = 2 / 3  # of the way from the mean to what a control reaches: a bound below it is blunt
LEAST_ROOM = 1.0  # points; another CPU rounds differently
RecordsByCell = Mapping[str, Record]  # a run of the grid


def get_bound(
    scores: Sequence[float], noise: Deviation, scale: Scale, *, bounds: int, tail: float = 0.0, control: float | None = None
) -> float:
    """The least score of a healthy run, in points, rounded down to a tenth.

    A new observation deviates from the mean of n by noise * sqrt(1 + 1 / n): all `bounds` of a run share `HEALTHY_MISSES`
    (Bonferroni), and a seed of its kind that lay farther out, by `tail` deviations, shows that chance goes so far. If few seeds
    leave it wide, it lies `CONTROL_SHARE` of the way from the mean to what a `control` scores.
    """
    from tunegrid.gate.statistics import critical_value  # which brings scipy

    mean = fmean(scores)
    errors = max(critical_value(HEALTHY_MISSES / bounds, noise.df), tail)
    minimum = min(scale.shift(mean, -errors * noise.sd * math.sqrt(1 + 1 / len(scores))), mean - LEAST_ROOM)
    if control is not None:
        minimum = max(minimum, mean - CONTROL_SHARE * (mean - control))
    return max(0.0, math.floor(round(10 * minimum, 6)) / 10)  # the inner rounding keeps 2.3 from becoming 2.2


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Runs of one grid."""

    seeds: Sequence[RecordsByCell]
    perturbed: Mapping[int, Sequence[RecordsByCell]] = field(default_factory=dict)  # by seed: its run, and from moved starts
    controls: Mapping[NoiseKey, float] = field(default_factory=dict)  # the best score of any control, by cell and score

    def bound_keys(self) -> list[NoiseKey]:
        """Every cell and bounded score."""
        return [(cell, metric) for cell, record in self.seeds[0].items() for metric in record.bounded_scores]

    @cached_property
    def noise(self) -> Noise:
        """Both kinds of training noise."""
        rows = {record.task: record.data.rows["test"] for record in self.seeds[0].values() if record.data}
        scores = {
            SEEDS: {key: [cell_scores(self.seeds, *key)] for key in self.bound_keys()},
            PERTURBED: {key: [cell_scores(grids, *key) for grids in self.perturbed.values()] for key in self.bound_keys()},
        }
        return Noise(profile=next(iter(self.seeds[0].values())).profile, rows=rows, scores=scores)

    def bounds(self) -> dict[NoiseKey, float]:
        """Every bound, from noise between seeds; raises InputError for one that an answer reaches which needs no model."""
        bounds = get_bounds(self.noise, self.controls)
        for record in (one for grids in (self.seeds, *self.perturbed.values()) for grid in grids for one in grid.values()):
            for metric, score in (item for finding in record.audits for item in (finding.without_model or {}).items()):
                if (minimum := bounds.get((record.cell, metric), math.inf)) <= score:
                    blunt = f"{record.cell}: an answer without a model has a {metric} of {score:.1f}"
                    raise InputError(f"{blunt}, and the bound would be {minimum:.1f}; train longer, or give more seeds")
        return bounds


def get_bounds(noise: Noise, controls: Mapping[NoiseKey, float]) -> dict[NoiseKey, float]:
    """The bound of every cell and score whose seeds were measured."""
    bounds = {}
    for (cell, metric), [scores] in noise.scores[SEEDS].items():
        if sigma := noise.estimate(SEEDS, cell, metric, fmean(scores)):
            count, tail, control = len(noise.scores[SEEDS]), noise.tail(cell, metric), controls.get((cell, metric))
            bounds[cell, metric] = get_bound(scores, sigma, noise.scale(cell, metric), bounds=count, tail=tail, control=control)
    return bounds


def cell_scores(grids: Sequence[RecordsByCell], cell: str, metric: str) -> list[float]:
    """One score of a cell in each of these runs; raises InputError if one has none."""
    scores = [grid[cell].scores.get(metric) if cell in grid else None for grid in grids]
    if None in scores:
        raise InputError(f"{cell} left no {metric} in one of the runs; calibrate from complete runs only")
    return [score for score in scores if score is not None]


def thresholds_toml(calibration: Calibration, command: str = LAB_CALIBRATE) -> str:
    """The file of bounds, which says by which command it was written."""
    share = f"{CONTROL_SHARE:.0%} of the way to `control`, the best score of a control."
    lines = [
        f"# Written by `{command}`. Scores are points, 0-100. A healthy run of the whole grid misses any",
        "# with a chance of 2 %: the mean minus a t quantile of a new observation, by the noise between seeds; of up to 30",
        "# seeds, the larger of the cell's own and that of its kind.",
        *([f"# But no bound lies farther from the mean than {share}"] if calibration.controls else []),
        *evidence(calibration),
    ]
    for (cell, metric), minimum in calibration.bounds().items():
        lines += ["", f"[cells.{cell}]"] if f"[cells.{cell}]" not in lines else []
        scores, control = cell_scores(calibration.seeds, cell, metric), calibration.controls.get((cell, metric))
        numbers = ", ".join(f"{score:.2f}" for score in scores)
        facts = f"mean = {fmean(scores):.2f}, sd = {stdev(scores):.2f}, scores = [{numbers}]"
        facts += "" if control is None else f", control = {control:.2f}"
        lines.append(f"{metric} = {{ minimum = {minimum:.1f}, {facts} }}")
    return "\n".join(lines) + "\n"


def own_noise_toml(calibration: Calibration) -> str:
    """The tables of a user's file of bounds on the recipe and test rows that its scores are of."""
    lines = ["", "# Gates read the noise from `scores` above, for this recipe and number of test rows."]
    for cell, record in calibration.seeds[0].items():
        if record.data:
            lines.append(f"[noise.{cell}]")
            lines.append(f"rows = {record.data.rows['test']}")
            lines.append(f'recipe = "{recipe_digest(record)}"')
    return "\n".join(lines) + "\n"


def evidence(calibration: Calibration) -> list[str]:
    """Where the figures come from: device, date, versions and seeds."""
    firsts = [next(iter(grid.values())) for grid in calibration.seeds]
    return ["[evidence]", *origin(firsts[0]), f"seeds = {[record.seeds.seed for record in firsts]}"]


def origin(first: Record) -> list[str]:
    """Profile, date, device and versions of a record."""
    device = f"{first.device.name}, {first.device.threads} thread per process" if first.device else ""
    packages = ", ".join(f'{name} = "{version}"' for name, version in first.versions.items() if version)
    return [f'profile = "{first.profile}"', f'date = "{date.today()}"', f'device = "{device}"', f"versions = {{ {packages} }}"]
