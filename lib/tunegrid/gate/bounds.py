"""Derives bounds and noise from runs of the same grid, and formats bounds as TOML.

Scores are in points, 0-100.
"""

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

HEALTHY_MISSES = 0.02  # chance that a healthy run of the whole grid misses any bound
# A control cannot have learned its task, so it must miss the bound. The bound lies at most this
# share of the way from the mean to the control's score.
CONTROL_SHARE = 2 / 3
LEAST_ROOM = 1.0  # fewest points from mean to bound, since other CPUs round differently
RecordsByCell = Mapping[str, Record]  # one run of the grid


def get_bound(
    scores: Sequence[float],
    noise: Deviation,
    scale: Scale,
    *,
    bounds: int,
    tail: float = 0.0,
    control: float | None = None,
) -> float:
    """The lowest score expected of a healthy run, in points, rounded down to a tenth.

    The difference between a new score and the mean of n scores has a standard deviation of
    `noise` * sqrt(1 + 1 / n). The chance `HEALTHY_MISSES` is divided among the `bounds` bounds of a
    run (Bonferroni). The bound is at least `tail` deviations and `LEAST_ROOM` points below the
    mean, but at most `CONTROL_SHARE` of the way to the score of a `control`.
    """
    from tunegrid.gate.statistics import critical_value  # imports scipy

    mean = fmean(scores)
    errors = max(critical_value(HEALTHY_MISSES / bounds, noise.df), tail)
    reach = errors * noise.sd * math.sqrt(1 + 1 / len(scores))
    minimum = min(scale.shift(mean, -reach), mean - LEAST_ROOM)
    if control is not None:
        minimum = max(minimum, mean - CONTROL_SHARE * (mean - control))
    # The inner rounding keeps 2.3 from turning into 2.2.
    tenths = math.floor(round(10 * minimum, 6))
    return max(0.0, tenths / 10)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Runs of one grid, from which noise and bounds are derived."""

    seeds: Sequence[RecordsByCell]
    # For each seed, its own run and the runs with perturbed initial weights.
    perturbed: Mapping[int, Sequence[RecordsByCell]] = field(default_factory=dict)
    # The best score of any control, by cell and score name.
    controls: Mapping[NoiseKey, float] = field(default_factory=dict)

    def bound_keys(self) -> list[NoiseKey]:
        """Lists the (cell, score name) pairs of all bounded scores."""
        keys = []
        for cell, record in self.seeds[0].items():
            keys += [(cell, metric) for metric in record.bounded_scores]
        return keys

    @cached_property
    def noise(self) -> Noise:
        """The noise between seeds and between perturbed runs, measured from these runs."""
        records = list(self.seeds[0].values())
        rows = {record.task: record.data.rows["test"] for record in records if record.data}
        scores: dict[str, dict[NoiseKey, list[list[float]]]] = {SEEDS: {}, PERTURBED: {}}
        for key in self.bound_keys():
            scores[SEEDS][key] = [cell_scores(self.seeds, *key)]
            scores[PERTURBED][key] = [cell_scores(grids, *key) for grids in self.perturbed.values()]
        return Noise(profile=records[0].profile, rows=rows, scores=scores)

    def bounds(self) -> dict[NoiseKey, float]:
        """Computes the bounds from the noise between seeds.

        Raises InputError if a run lacks a score, or if an answer that needs no model, such as the
        most frequent label, reaches a bound.
        """
        bounds = get_bounds(self.noise, self.controls)
        for grids in (self.seeds, *self.perturbed.values()):
            for grid in grids:
                for record in grid.values():
                    _check_sharp(record, bounds)
        return bounds


def _check_sharp(record: Record, bounds: Mapping[NoiseKey, float]) -> None:
    """Raises InputError if an answer that needs no model reaches a bound."""
    for finding in record.audits:
        for metric, score in (finding.without_model or {}).items():
            minimum = bounds.get((record.cell, metric), math.inf)
            if minimum <= score:
                blunt = f"{record.cell}: an answer without a model has a {metric} of {score:.1f}"
                cause = f"{blunt}, and the bound would be {minimum:.1f}"
                raise InputError(f"{cause}; train longer, or give more seeds")


def get_bounds(noise: Noise, controls: Mapping[NoiseKey, float]) -> dict[NoiseKey, float]:
    """The bounds of all scores whose noise between seeds is known, by cell and score."""
    bounds = {}
    calibrated = noise.scores[SEEDS]
    for (cell, metric), [scores] in calibrated.items():
        spread = noise.estimate(SEEDS, cell, metric, fmean(scores))
        if spread:
            bounds[cell, metric] = get_bound(
                scores,
                spread,
                noise.scale(cell, metric),
                bounds=len(calibrated),
                tail=noise.tail(cell, metric),
                control=controls.get((cell, metric)),
            )
    return bounds


def cell_scores(grids: Sequence[RecordsByCell], cell: str, metric: str) -> list[float]:
    """A cell's score in each of these runs; raises InputError if a run lacks it."""
    scores = []
    for grid in grids:
        score = grid[cell].scores.get(metric) if cell in grid else None
        if score is None:
            lack = f"{cell} left no {metric} in one of the runs"
            raise InputError(f"{lack}; calibrate from complete runs only")
        scores.append(score)
    return scores


def thresholds_toml(calibration: Calibration, command: str = LAB_CALIBRATE) -> str:
    """The text of the bounds file; its first line names the `command` that writes it."""
    lines = [
        f"# Written by `{command}`. Scores are points, 0-100.",
        "# A bound is the mean of the seeds minus a margin for the noise between seeds. "
        "Of 100 healthy runs",
        "# of these cells, two miss a bound. With up to 30 seeds, the noise is the larger "
        "of the cell's own",
        "# and that of its kind (task and backbone).",
    ]
    if calibration.controls:
        share = f"{CONTROL_SHARE:.0%} of the way to `control`, the best score of a control."
        lines.append(f"# But no bound lies farther from the mean than {share}")
    lines += evidence(calibration)
    for (cell, metric), minimum in calibration.bounds().items():
        header = f"[cells.{cell}]"
        if header not in lines:
            lines += ["", header]
        scores = cell_scores(calibration.seeds, cell, metric)
        numbers = ", ".join(f"{score:.2f}" for score in scores)
        facts = f"mean = {fmean(scores):.2f}, sd = {stdev(scores):.2f}, scores = [{numbers}]"
        control = calibration.controls.get((cell, metric))
        if control is not None:
            facts += f", control = {control:.2f}"
        lines.append(f"{metric} = {{ minimum = {minimum:.1f}, {facts} }}")
    return "\n".join(lines) + "\n"


def own_noise_toml(calibration: Calibration) -> str:
    """The `[noise.CELL]` tables of a user's bounds file, with row counts and recipe digests."""
    lines = [
        "",
        "# Gates read the noise from `scores` above, for this recipe and number of test rows.",
    ]
    for cell, record in calibration.seeds[0].items():
        if record.data:
            lines.append(f"[noise.{cell}]")
            lines.append(f"rows = {record.data.rows['test']}")
            lines.append(f'recipe = "{recipe_digest(record)}"')
    return "\n".join(lines) + "\n"


def evidence(calibration: Calibration) -> list[str]:
    """The lines of the `[evidence]` table: profile, date, device, versions and seeds."""
    firsts = [next(iter(grid.values())) for grid in calibration.seeds]
    return ["[evidence]", *origin(firsts[0]), f"seeds = {[record.seeds.seed for record in firsts]}"]


def origin(first: Record) -> list[str]:
    """TOML lines with a record's profile, device and versions, and today's date."""
    device = (
        f"{first.device.name}, {first.device.threads} thread per process" if first.device else ""
    )
    versions = [f'{name} = "{version}"' for name, version in first.versions.items() if version]
    return [
        f'profile = "{first.profile}"',
        f'date = "{date.today()}"',
        f'device = "{device}"',
        f"versions = {{ {', '.join(versions)} }}",
    ]
