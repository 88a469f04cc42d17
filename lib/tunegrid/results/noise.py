"""Gives the training noise of a score: the deviations that `calibrate` measured, in points.

There are two kinds. *seeds*: trainings that differ in their seed. *perturbed*: trainings of one seed whose starts differ in the
last digits. Which of them separates two runs is decided by evidence in their records (`tunegrid.results.numerics`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, variance
from typing import Annotated, Literal

from pydantic import Field

from tunegrid.record import Record
from tunegrid.results.thresholds import LAB_CALIBRATE, THRESHOLDS, Number, checked, tables

NOISE = THRESHOLDS / "noise.toml"
SEEDS, PERTURBED = "seeds", "perturbed"
# Points by which a row moves that changes, if no row moves by 100: no text is far from any other by BERTScore. The mean of
# squares over the mean, of the rows that two seeds of the committed baseline answer otherwise, is 15.6.
STEPS = {"bertscore_f1": 15.6}
NoiseKey = tuple[str, str]  # cell, and score
Groups = Sequence[Sequence[float]]  # scores that differ by chance alone within each group
ScoresByKey = Mapping[NoiseKey, Groups]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A standard deviation between trainings, in points."""

    sd: Annotated[Number, Field(ge=0, le=100)]
    df: Annotated[Number, Field(ge=1, le=10_000)]  # degrees of freedom that it rests on


def deviation(groups: Groups) -> Deviation | None:
    """The deviation within groups of scores, pooled over the groups; None if no group has two."""
    return pooled(Deviation(sd=variance(group) ** 0.5, df=len(group) - 1) for group in groups if len(group) > 1)


def pooled(deviations: Iterable[Deviation]) -> Deviation | None:
    """One deviation for all, each weighted by its degrees of freedom; None of none."""
    known = list(deviations)
    df = sum(own.df for own in known)
    return Deviation(sd=(sum(own.df * own.sd**2 for own in known) / df) ** 0.5, df=df) if known else None


def resolution(rows: int, metric: str = "") -> float:
    """The least deviation that counts: half of one row's points. A few draws without a flip do not prove that there is none."""
    return STEPS.get(metric, 100.0) / rows / 2


def task_of(cell: str) -> str:
    """As "qa" of "bert_qa_lora"."""
    return cell.split("_")[1]


def kind_of(cell: str) -> str:
    """Cells of one backbone and task are of a kind, as in "bert_qa": methods differ less in their noise."""
    return cell.rpartition("_")[0]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What training noise does to the scores of one profile."""

    profile: str = ""  # that was calibrated
    rows: Mapping[str, int] = field(default_factory=dict)  # test rows by task; of other test sets, nothing is known
    measured: Mapping[str, Mapping[NoiseKey, Deviation]] = field(default_factory=dict)  # by kind of noise
    scores: Mapping[str, ScoresByKey] = field(default_factory=dict)  # that they were measured with, by kind of noise

    def of(self, kind: str, record: Record, metric: str) -> Deviation | None:
        """The deviation of a record's score; None if nothing is known of its profile, test rows, or kind of cells."""
        rows = record.data.rows["test"] if record.data else None
        alike = record.profile == self.profile and rows == self.rows.get(record.task)
        return self.estimate(kind, record.cell, metric) if alike else None

    def estimate(self, kind: str, cell: str, metric: str) -> Deviation | None:
        """The larger of a cell's own deviation and that of its kind of cells, which is all that is known of a new method.

        A few draws may agree by chance: held to the own deviation alone, 6 % of simulated equal runs of other seeds are called
        worse, and by this rule 2 % (`python -m tunegrid.lab power`). The degrees of freedom are the cell's own: cells of a
        kind, which share theirs, may be compared. No deviation counts as less than its test rows resolve.
        """
        measured = self.measured.get(kind, {})
        common = pooled(own for (other, name), own in measured.items() if name == metric and kind_of(other) == kind_of(cell))
        if not common:
            return None
        own = measured.get((cell, metric), common)
        return Deviation(sd=max(own.sd, common.sd, resolution(self.rows[task_of(cell)], metric)), df=own.df)


@dataclass(frozen=True, kw_only=True)
class _Entry(Deviation):
    """What a file holds of one kind of noise of a cell's score."""

    scores: list[list[Annotated[Number, Field(ge=0, le=100)]]] = field(default_factory=list)


def load_noise(path: Path = NOISE) -> Noise:
    """The calibrated noise; none without a file. Raises InputError for one that is not sound."""
    if not path.is_file():
        return Noise()
    with tables(path, "noise", LAB_CALIBRATE) as content:
        rows = {task: int(count) for task, count in checked(content["rows"], dict[str, Number]).items()}
        cells = checked(content["cells"], dict[str, dict[str, dict[Literal["seeds", "perturbed"], _Entry]]])
        if absent := {cell for cell in cells if task_of(cell) not in rows}:
            raise KeyError(f"rows of {min(absent)}")
        known = {(cell, metric): kinds for cell, metrics in cells.items() for metric, kinds in metrics.items()}
        own = {kind: {key: kinds[kind] for key, kinds in known.items() if kind in kinds} for kind in (SEEDS, PERTURBED)}
        scores = {kind: {key: entry.scores for key, entry in keys.items()} for kind, keys in own.items()}
        return Noise(profile=str(content["evidence"]["profile"]), rows=rows, measured=own, scores=scores)


def mean_score(records: Sequence[Record], metric: str) -> float:
    """The mean of a score that all records have."""
    return fmean(score for record in records if (score := record.scores.get(metric)) is not None)
