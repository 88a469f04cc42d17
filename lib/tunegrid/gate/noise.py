"""Gives the training noise of a score: its deviations, and their scale.

There are two kinds. *seeds*: trainings that differ in their seed. *perturbed*: trainings of one
seed whose starts differ in the last digits. The evidence in two runs' records
(`tunegrid.gate.numerics`) decides which of them applies.
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

NOISE = THRESHOLDS / "noise.toml"
SEEDS = "seeds"
PERTURBED = "perturbed"
ENOUGH = 30  # degrees of freedom, by which a standard deviation is known to an eighth
# Points by which a changed row moves, if not by 100: by BERTScore, no text is far from any other.
# The mean of squares over the mean, of the rows that two seeds of 0.19's baseline answer otherwise,
# is 15.6; of today's, 17.4.
STEPS = {"bertscore_f1": 15.6}
NoiseKey = tuple[str, str]  # cell, and score
Groups = Sequence[Sequence[float]]  # scores that differ by chance alone within each group
ScoresByKey = Mapping[NoiseKey, Groups]


@dataclass(frozen=True)
class Scale:
    """The scale on which scores are tested: the arcsine of their root, in units of a point at 50.

    Near 100 few rows are wrong, and seeds move their number less: at 98.5 a point is 4 units. This
    scale makes the variance of a share alike everywhere; log(100 - score) would blow up changes
    between 99 and 100.
    """

    half: float  # of the points by which a changed row moves; infinite: the scale is that of points

    def position(self, score: float) -> float:
        """The score on the scale; below 0 points or above 100, the scale's end."""
        if self.half == math.inf:
            return score
        points = min(max(score, 0.0), 100.0)
        return 100 * math.asin(math.sqrt((points + self.half) / (100 + 2 * self.half)))

    def shift(self, score: float, distance: float) -> float:
        """The score, in points, at this distance above another on the scale; from 0 to 100."""
        if self.half == math.inf:
            return score + distance
        angle = min(max((self.position(score) + distance) / 100, 0.0), math.pi / 2)
        points = math.sin(angle) ** 2 * (100 + 2 * self.half) - self.half
        return min(max(points, 0.0), 100.0)

    def per_point(self, score: float) -> float:
        """The units of a point at this score."""
        if self.half == math.inf:
            return 1.0
        return 50 / math.sqrt((score + self.half) * (100 - score + self.half))

    def resolution(self, score: float) -> float:
        """The least deviation that counts, half a row's: few draws without a flip do not prove
        none.
        """
        return self.half * self.per_point(score)


POINT_SCALE = Scale(math.inf)


def make_scale(rows: int, metric: str) -> Scale:
    """The scale of scores of this number of test rows."""
    return Scale(STEPS.get(metric, 100.0) / rows / 2)


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A standard deviation between trainings."""

    sd: Annotated[Number, Field(ge=0, le=100)]
    df: Annotated[Number, Field(ge=1, le=10_000)]  # degrees of freedom that it rests on


def deviation(groups: Groups) -> Deviation | None:
    """The deviation within groups of numbers, by their degrees of freedom.

    None if no group has two.
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
    """The task in a cell's id, as "qa" of "bert_qa_lora"."""
    return cell.split("_")[1]


def cell_kind(cell: str) -> str:
    """The backbone and task of a cell, as "bert_qa": methods differ less in their noise."""
    return cell.rpartition("_")[0]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The training noise of the scores of one profile."""

    profile: str = ""  # that was calibrated
    # Test rows by task; of other test sets, nothing is known
    rows: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, ScoresByKey] = field(default_factory=dict)  # points, by kind of noise
    own: Sequence[OwnNoise] = ()  # of users' cells; the first that applies counts

    @cached_property
    def spreads(self) -> dict[tuple[str, str, str], Deviation]:
        """Deviations on the scale by kind of noise, cell or kind of cells, and score."""
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
        """The scores of a cell on their scale."""
        scale = self.scale(cell, metric)
        return [list(map(scale.position, group)) for group in self.scores[kind][cell, metric]]

    def residuals(self, kind: str, cell: str, metric: str) -> list[float]:
        """The residuals of a cell's scores, with a variance of 1; empty if no scores differ."""
        unit = self.spreads.get((kind, cell, metric))
        if not unit or not unit.sd:
            return []
        residuals = []
        for group in self.positions(kind, cell, metric):
            if len(group) > 1:
                mean = fmean(group)
                shrinkage = math.sqrt(1 - 1 / len(group))  # the mean took 1 / n of the variance
                residuals += [(score - mean) / unit.sd / shrinkage for score in group]
        return residuals

    def tail(self, cell: str, metric: str) -> float:
        """The deviations below its mean of the worst seed of any cell of this kind."""
        lowest = 0.0
        for calibrated, score in self.scores[SEEDS]:
            if cell_kind(calibrated) == cell_kind(cell) and score == metric:
                lowest = min([lowest, *self.residuals(SEEDS, calibrated, score)])
        return -lowest

    def find(self, kind: str, record: Record, metric: str) -> Deviation | None:
        """The deviation of a record's score; None if its profile, test rows, or kind of cells is
        unknown.

        That of a user's cell is known if its very recipe was calibrated.
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
        if (kind, record.cell, metric) in self.spreads:  # a cell of the suite
            return spread
        # A user's method on a task of the suite
        return replace(own_spread, sd=max(own_spread.sd, spread.sd))

    def estimate(self, kind: str, cell: str, metric: str, score: float) -> Deviation | None:
        """A cell's own deviation; of fewer than `ENOUGH` draws, no less than that of its kind.

        A few draws may agree by chance; of a new method, only its kind is known. The degrees of
        freedom are the cell's own: cells of a kind, which share theirs, may be compared. No
        deviation counts as less than test rows resolve at `score`.
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
    """The deviation between seeds of a user's cell, no less than its test rows resolve.

    None if it has no such scores.
    """
    scale = make_scale(own.rows, metric)
    spread = deviation([[scale.position(score) for score in own.scores.get(metric, ())]])
    if spread is None:
        return None
    return Deviation(sd=max(spread.sd, scale.resolution(score)), df=spread.df)


@dataclass(frozen=True, kw_only=True)
class _Entry(Deviation):
    """One kind of noise of a score in a file: its deviation in points, for readers; the scores."""

    scores: list[list[Annotated[Number, Field(ge=0, le=100)]]]


def load_noise(path: Path = NOISE, own: Sequence[OwnNoise] = ()) -> Noise:
    """The calibrated noise, with that of users' cells. Raises InputError if a file is not sound."""
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
    """The noise in a user's file of bounds; empty without one. Raises InputError for a bad file."""
    if not path.is_file():
        return []
    with read_toml(path, "noise", OWN_CALIBRATE) as content:
        cells = check_shape(content.get("noise", {}), dict[str, dict[str, Any]])
        if not cells:  # bounds that were written by hand
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
