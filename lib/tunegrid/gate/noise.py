"""Gives the training noise of a score: the deviations that `calibrate` measured, and the scale on which they are alike.

There are two kinds. *seeds*: trainings that differ in their seed. *perturbed*: trainings of one seed whose starts differ in the
last digits. Which of them separates two runs is decided by evidence in their records (`tunegrid.gate.numerics`).
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
    tables,
)
from tunegrid.record import Record
from tunegrid.runs.files import OwnNoise

NOISE = THRESHOLDS / "noise.toml"
SEEDS, PERTURBED = "seeds", "perturbed"
ENOUGH = 30  # degrees of freedom, by which a standard deviation is known to an eighth
# Points by which a row moves that changes, if no row moves by 100: no text is far from any other by BERTScore. The mean of
# squares over the mean, of the rows that two seeds of 0.19's baseline answer otherwise, is 15.6; of today's, 17.4.
STEPS = {"bertscore_f1": 15.6}
NoiseKey = tuple[str, str]  # cell, and score
Groups = Sequence[Sequence[float]]  # scores that differ by chance alone within each group
ScoresByKey = Mapping[NoiseKey, Groups]


@dataclass(frozen=True)
class Scale:
    """The scale on which scores are tested: the arcsine of their root, in units of a point at 50; at 98.5 a point is 4 of them.

    Near 100 few rows are wrong, and seeds move their number less. This scale makes the variance of a share alike wherever it
    lies; log(100 - score) would blow up what moves between 99 and 100.
    """

    half: float  # of the points by which a row moves that changes; infinite: the scale is that of points

    def position(self, score: float) -> float:
        """A score's place; of less than 0 points, or more than 100, that of the end."""
        if self.half == math.inf:
            return score
        return 100 * math.asin(math.sqrt((min(max(score, 0.0), 100.0) + self.half) / (100 + 2 * self.half)))

    def shift(self, score: float, distance: float) -> float:
        """The score, in points, that lies so far above this one on the scale; 0 or 100 if none does."""
        if self.half == math.inf:
            return score + distance
        angle = min(max((self.position(score) + distance) / 100, 0.0), math.pi / 2)
        return min(max(math.sin(angle) ** 2 * (100 + 2 * self.half) - self.half, 0.0), 100.0)

    def per_point(self, score: float) -> float:
        """How much a point is at this score."""
        return 1.0 if self.half == math.inf else 50 / math.sqrt((score + self.half) * (100 - score + self.half))

    def resolution(self, score: float) -> float:
        """The least deviation that counts: half a row's. A few draws without a flip do not prove that there is none."""
        return self.half * self.per_point(score)


POINTS = Scale(math.inf)


def make_scale(rows: int, metric: str) -> Scale:
    """Of scores of so many test rows."""
    return Scale(STEPS.get(metric, 100.0) / rows / 2)


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A standard deviation between trainings."""

    sd: Annotated[Number, Field(ge=0, le=100)]
    df: Annotated[Number, Field(ge=1, le=10_000)]  # degrees of freedom that it rests on


def deviation(groups: Groups) -> Deviation | None:
    """The deviation within groups of numbers, each group weighted by its degrees of freedom; None if no group has two."""
    df = sum(len(group) - 1 for group in groups if group)
    squares = math.fsum((one - mean) ** 2 for group in groups if group for mean in [fmean(group)] for one in group)
    return Deviation(sd=math.sqrt(squares / df), df=df) if df else None


def task_name(cell: str) -> str:
    """As "qa" of "bert_qa_lora"."""
    return cell.split("_")[1]


def cell_kind(cell: str) -> str:
    """Cells of one backbone and task are of a kind, as in "bert_qa": methods differ less in their noise."""
    return cell.rpartition("_")[0]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What training noise does to the scores of one profile."""

    profile: str = ""  # that was calibrated
    rows: Mapping[str, int] = field(default_factory=dict)  # test rows by task; of other test sets, nothing is known
    scores: Mapping[str, ScoresByKey] = field(default_factory=dict)  # points, by kind of noise
    own: Sequence[OwnNoise] = ()  # of users' cells; the first that applies counts

    @cached_property
    def spreads(self) -> dict[tuple[str, str, str], Deviation]:
        """Deviations on the scale by kind of noise, cell, and score; and by kinds of cells in place of a cell."""
        groups = defaultdict[tuple[str, str, str], list[Sequence[float]]](list)
        for kind, (cell, metric) in ((kind, key) for kind, keys in self.scores.items() for key in keys):
            for name in (cell, cell_kind(cell)):
                groups[kind, name, metric] += self.places(kind, cell, metric)
        return {key: spread for key, group in groups.items() if (spread := deviation(group))}

    def scale(self, cell: str, metric: str) -> Scale:
        """Of a cell's calibrated scores."""
        own_rows = {own.cell: own.rows for own in self.own}
        return make_scale(self.rows.get(task_name(cell)) or own_rows[cell], metric)

    def places(self, kind: str, cell: str, metric: str) -> Groups:
        """Scores of a cell as places on their scale."""
        scale = self.scale(cell, metric)
        return [[scale.position(score) for score in group] for group in self.scores[kind][cell, metric]]

    def residuals(self, kind: str, cell: str, metric: str) -> list[float]:
        """Of each score, with a variance of 1: a mean of n takes 1 / n of it, which is given back. Empty if nothing differs."""
        unit, groups = self.spreads.get((kind, cell, metric)), [group for group in self.places(kind, cell, metric) if group[1:]]
        if not unit or not unit.sd:
            return []
        return [(one - fmean(group)) / unit.sd / math.sqrt(1 - 1 / len(group)) for group in groups for one in group]

    def tail(self, cell: str, metric: str) -> float:
        """How many deviations below its mean the worst seed of any cell of this kind lies."""
        keys = [key for key in self.scores[SEEDS] if (cell_kind(key[0]), key[1]) == (cell_kind(cell), metric)]
        return -min(residual for key in keys for residual in (0.0, *self.residuals(SEEDS, *key)))

    def find(self, kind: str, record: Record, metric: str) -> Deviation | None:
        """The deviation of a record's score; None if nothing is known of its profile, test rows, or kind of cells.

        That of a user's cell is known if its very recipe was calibrated.
        """
        rows, score = record.data.rows["test"] if record.data else None, record.scores.get(metric)
        if score is None:
            return None
        is_alike = record.profile == self.profile and rows == self.rows.get(record.task)
        spread = self.estimate(kind, record.cell, metric, score) if is_alike else None
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
        """A cell's own deviation if it rests on `ENOUGH` draws, else the larger of it and that of its kind of cells.

        A few draws may agree by chance; of a new method, only its kind is known. The degrees of freedom are the cell's own:
        cells of a kind, which share theirs, may be compared. No deviation counts as less than test rows resolve at `score`.
        """
        if not (common := self.spreads.get((kind, cell_kind(cell), metric))):
            return None
        spread = self.spreads.get((kind, cell, metric), common)
        sd = spread.sd if spread.df >= ENOUGH else max(spread.sd, common.sd)
        return Deviation(sd=max(sd, self.scale(cell, metric).resolution(score)), df=spread.df)


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
    """What a file holds of one kind of noise of a cell's score: the deviation in points, for readers, and the scores."""

    scores: list[list[Annotated[Number, Field(ge=0, le=100)]]]


def load_noise(path: Path = NOISE, own: Sequence[OwnNoise] = ()) -> Noise:
    """The calibrated noise, with that of users' cells. Raises InputError if a file is not sound."""
    if not path.is_file():
        return Noise(own=own)
    with tables(path, "noise", LAB_CALIBRATE) as content:
        rows = {task: int(count) for task, count in check_shape(content["rows"], dict[str, Number]).items()}
        cells = check_shape(content["cells"], dict[str, dict[str, dict[Literal["seeds", "perturbed"], _Entry]]])
        for cell in sorted(cells):
            if task_name(cell) not in rows:
                raise KeyError(f"rows of {cell}")
        groups = {(cell, metric): kinds for cell, metrics in cells.items() for metric, kinds in metrics.items()}
        scores = {kind: {key: part[kind].scores for key, part in groups.items() if kind in part} for kind in (SEEDS, PERTURBED)}
        profile = str(content["evidence"]["profile"])
        return Noise(profile=profile, rows=rows, scores=scores, own=own)


def load_own_noise(path: Path) -> list[OwnNoise]:
    """The noise in a user's file of bounds; empty without one. Raises InputError for a bad file."""
    if not path.is_file():
        return []
    with tables(path, "noise", OWN_CALIBRATE) as content:
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
    """The mean of a score that all records have."""
    return fmean(score for record in records if (score := record.scores.get(metric)) is not None)
