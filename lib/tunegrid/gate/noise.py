"""Provides the training noise of scores: its standard deviation and the scale it is measured on.

There are two kinds: *seeds*, between training runs with different seeds, and *perturbed*, between
training runs of one seed whose initial weights differ in the last digits. The evidence in the
records of two runs (`tunegrid.gate.numerics`) decides which kind applies.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from tunegrid.errors import InputError
from tunegrid.gate.thresholds import (
    LAB_CALIBRATE,
    OWN_CALIBRATE,
    THRESHOLDS,
    Number,
    check_shape,
    read_toml,
)
from tunegrid.record import Record
from tunegrid.runs.files import OwnNoise

NOISE_FILE = THRESHOLDS / "noise.toml"
SEEDS = "seeds"
PERTURBED = "perturbed"
ENOUGH = 30  # degrees of freedom that give a standard deviation to within an eighth
# Points by which the score of a changed row moves, where it is not 100. BERTScore never rates two
# texts far apart. The value is the mean squared change divided by the mean change, over the rows
# that two seeds answer differently: 15.6 in 0.19's baseline, 17.4 today.
STEPS = {"bertscore_f1": 15.6}
NoiseKey = tuple[str, str]  # the cell's id and the score's name
Groups = Sequence[Sequence[float]]  # within each group, scores differ only by chance
ScoresByKey = Mapping[NoiseKey, Groups]


@dataclass(frozen=True)
class Scale:
    """The scale on which scores are tested: the arcsine of the square root of a share.

    Near 100, few rows are wrong, and their number varies less between seeds. On this scale, where a
    point is 1 unit at 50 and 4 units at 98.5, a share has the same variance everywhere.
    log(100 - score) would exaggerate changes between 99 and 100.
    """

    # Half the points by which a changed row moves the score; infinite for a scale of plain points.
    half: float

    def position(self, score: float) -> float:
        """The score's position on the scale; clips the score to 0-100, except on plain points."""
        if self.half == math.inf:
            return score
        points = min(max(score, 0.0), 100.0)
        return 100 * math.asin(math.sqrt((points + self.half) / (100 + 2 * self.half)))

    def shift(self, score: float, distance: float) -> float:
        """The score `distance` units above this one, clipped to 0-100 except on plain points."""
        if self.half == math.inf:
            return score + distance
        angle = min(max((self.position(score) + distance) / 100, 0.0), math.pi / 2)
        points = math.sin(angle) ** 2 * (100 + 2 * self.half) - self.half
        return min(max(points, 0.0), 100.0)

    def per_point(self, score: float) -> float:
        """The number of scale units per point at this score."""
        if self.half == math.inf:
            return 1.0
        return 50 / math.sqrt((score + self.half) * (100 - score + self.half))

    def resolution(self, score: float) -> float:
        """The smallest standard deviation to assume, in scale units: the effect of half a row.

        A few runs with equal scores do not prove that there is no noise.
        """
        return self.half * self.per_point(score)


POINT_SCALE = Scale(math.inf)


def make_scale(rows: int, metric: str) -> Scale:
    """The scale of a metric on this number of test rows."""
    return Scale(STEPS.get(metric, 100.0) / rows / 2)


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A standard deviation between training runs."""

    sd: Annotated[Number, Field(ge=0, le=100)]
    df: Annotated[Number, Field(ge=1, le=10_000)]  # degrees of freedom of the deviation


def deviation(groups: Groups) -> Deviation | None:
    """The pooled standard deviation within groups of numbers, with its degrees of freedom.

    None if no group has two numbers.
    """
    df = 0
    squares: list[float] = []
    for group in groups:
        if group:
            df += len(group) - 1
            mean = fmean(group)
            squares += [(number - mean) ** 2 for number in group]
    if not df:
        return None
    return Deviation(sd=math.sqrt(math.fsum(squares) / df), df=df)


def task_name(cell: str) -> str:
    """The task in a cell's id, for example "qa" in "bert_qa_lora"."""
    return cell.split("_")[1]


def cell_kind(cell: str) -> str:
    """A cell's kind: its backbone and task, as in "bert_qa". Methods affect noise less."""
    return cell.rpartition("_")[0]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The training noise of the scores of one profile."""

    profile: str = ""  # the calibrated profile
    # The number of test rows by task; nothing is known about other test sets.
    rows: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, ScoresByKey] = field(default_factory=dict)  # in points, by kind of noise
    own: Sequence[OwnNoise] = ()  # for users' cells; the first that applies counts

    @cached_property
    def spreads(self) -> dict[tuple[str, str, str], Deviation]:
        """Standard deviations in scale units, by (kind of noise, cell or cell kind, score name)."""
        groups = defaultdict[tuple[str, str, str], list[Sequence[float]]](list)
        for kind, keys in self.scores.items():
            for cell, metric in keys:
                positions = self.positions(kind, cell, metric)
                groups[kind, cell, metric] += positions
                groups[kind, cell_kind(cell), metric] += positions
        spreads = {}
        for key, group in groups.items():
            spread = deviation(group)
            if spread:
                spreads[key] = spread
        return spreads

    def scale(self, cell: str, metric: str) -> Scale:
        """The scale of a cell's calibrated scores."""
        own_rows = {own.cell: own.rows for own in self.own}
        return make_scale(self.rows.get(task_name(cell)) or own_rows[cell], metric)

    def positions(self, kind: str, cell: str, metric: str) -> Groups:
        """A cell's scores as positions on their scale."""
        scale = self.scale(cell, metric)
        return [list(map(scale.position, group)) for group in self.scores[kind][cell, metric]]

    def residuals(self, kind: str, cell: str, metric: str) -> list[float]:
        """A cell's scores minus their group's mean, scaled to a variance of 1.

        Empty if the cell's standard deviation is 0 or unknown.
        """
        unit = self.spreads.get((kind, cell, metric))
        if not unit or not unit.sd:
            return []
        residuals = []
        for group in self.positions(kind, cell, metric):
            if len(group) > 1:
                mean = fmean(group)
                # The fitted mean absorbs 1 / n of the variance.
                shrinkage = math.sqrt(1 - 1 / len(group))
                residuals += [(score - mean) / unit.sd / shrinkage for score in group]
        return residuals

    def tail(self, cell: str, metric: str) -> float:
        """The farthest that a seed of this kind of cell is below its cell's mean, in deviations."""
        lowest = 0.0
        for calibrated, score in self.scores[SEEDS]:
            if cell_kind(calibrated) == cell_kind(cell) and score == metric:
                lowest = min([lowest, *self.residuals(SEEDS, calibrated, score)])
        return -lowest

    def find(self, kind: str, record: Record, metric: str) -> Deviation | None:
        """The deviation of a record's score; None if it is unknown or the score is missing.

        The deviation is known if this kind of cell was calibrated in the same profile with the same
        number of test rows. Between seeds, it is also known if the user calibrated the cell with
        exactly this recipe.
        """
        score = record.scores.get(metric)
        if score is None:
            return None
        rows = record.data.rows["test"] if record.data else None
        spread = None
        if record.profile == self.profile and rows == self.rows.get(record.task):
            spread = self.estimate(kind, record.cell, metric, score)
        own = next((own for own in self.own if own.applies_to(record)), None)
        if kind != SEEDS or own is None:
            return spread
        own_spread = own_deviation(own, metric, score)
        if spread is None or own_spread is None:
            return spread or own_spread
        if (kind, record.cell, metric) in self.spreads:  # the suite calibrated this cell
            return spread
        # A user's method on one of the suite's tasks.
        return replace(own_spread, sd=max(own_spread.sd, spread.sd))

    def estimate(self, kind: str, cell: str, metric: str, score: float) -> Deviation | None:
        """Estimates a cell's deviation; None if no cell of its kind was calibrated.

        Below `ENOUGH` degrees of freedom, it is at least the deviation of the cell's kind, since a
        few runs may agree by chance. Uncalibrated cells get the deviation of their kind. Calibrated
        cells keep their own degrees of freedom, since cells of a kind may be compared with each
        other. The deviation is at least the resolution of the test rows at `score`.
        """
        common = self.spreads.get((kind, cell_kind(cell), metric))
        if not common:
            return None
        spread = self.spreads.get((kind, cell, metric), common)
        sd = max(spread.sd, self.scale(cell, metric).resolution(score))
        if spread.df < ENOUGH:
            sd = max(sd, common.sd)
        return Deviation(sd=sd, df=spread.df)


def own_deviation(own: OwnNoise, metric: str, score: float) -> Deviation | None:
    """The deviation between seeds of a user's cell, at least the resolution of its test rows.

    Returns None if fewer than two of the cell's scores were measured.
    """
    scale = make_scale(own.rows, metric)
    spread = deviation([[scale.position(score) for score in own.scores.get(metric, ())]])
    if spread is None:
        return None
    return Deviation(sd=max(spread.sd, scale.resolution(score)), df=spread.df)


@dataclass(frozen=True, kw_only=True)
class _Entry(Deviation):
    """An entry of the noise file, with one kind of noise for one score.

    `sd`, in points, only informs human readers; the code uses `scores`.
    """

    scores: list[list[Annotated[Number, Field(ge=0, le=100)]]]


def load_noise(path: Path = NOISE_FILE, own: Sequence[OwnNoise] = ()) -> Noise:
    """Loads the calibrated noise, if any, and adds users' own; raises InputError for a bad file."""
    if not path.is_file():
        return Noise(own=own)
    with read_toml(path, "noise", LAB_CALIBRATE) as content:
        test_rows = check_shape(content["rows"], dict[str, Number])
        rows = {task: int(number) for task, number in test_rows.items()}
        kinds = dict[Literal["seeds", "perturbed"], _Entry]
        cells = check_shape(content["cells"], dict[str, dict[str, kinds]])
        for cell in sorted(cells):
            if task_name(cell) not in rows:
                raise KeyError(f"rows of {cell}")
        scores: dict[str, dict[NoiseKey, Groups]] = {SEEDS: {}, PERTURBED: {}}
        for cell, metrics in cells.items():
            for metric, entries in metrics.items():
                for kind, entry in entries.items():
                    scores[kind][cell, metric] = entry.scores
        profile = str(content["evidence"]["profile"])
        return Noise(profile=profile, rows=rows, scores=scores, own=own)


def load_own_noise(path: Path) -> list[OwnNoise]:
    """Loads the noise in a user's bounds file; raises InputError for a bad file.

    Returns an empty list if there is no such file or it holds no noise.
    """
    if not path.is_file():
        return []
    with read_toml(path, "noise", OWN_CALIBRATE) as content:
        cells = check_shape(content.get("noise", {}), dict[str, dict[str, Any]])
        if not cells:  # the bounds were written by hand
            return []
        if "profile" not in content.get("evidence", {}):
            raise InputError("a line `profile` under [evidence] is missing")
        profile = content["evidence"]["profile"]
        entries = []
        for cell, facts in cells.items():
            bounds = content["cells"][cell]
            scores = {name: bound["scores"] for name, bound in bounds.items() if "scores" in bound}
            profile = content["evidence"]["profile"]
            entry = facts | {"cell": cell, "profile": profile, "scores": scores}
            entries.append(check_shape(entry, OwnNoise))
        return entries


def mean_score(records: Sequence[Record], metric: str) -> float:
    """The mean of a score over the records that have it."""
    scores = [record.scores.get(metric) for record in records]
    return fmean(score for score in scores if score is not None)
