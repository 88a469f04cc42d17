"""Gives the training noise of a score, pooled from the deviations that `calibrate` measured.

There are two kinds. *seeds*: trainings that differ in their seed. *perturbed*: trainings of one seed whose starts differ in the
last digits. Which of them separates two runs is decided by evidence in their records (`tunegrid.results.numerics`).
Deviations are in points, 0-100. Needs no torch.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy import optimize, special

from tunegrid.record import Record
from tunegrid.results.statistics import Array
from tunegrid.results.thresholds import LAB_CALIBRATE, THRESHOLDS, Number, checked, tables

NOISE = THRESHOLDS / "noise.toml"
SEEDS, PERTURBED = "seeds", "perturbed"
MOST_DF = 1e4  # of a prior: as good as infinite; the cells of a kind differ by no more than chance
PRIOR_PARAMETERS = 2  # its variance and its degrees of freedom, fitted to the same deviations
LOWEST, LEAST_RESIDUALS = 0.05, 20  # the lowest twentieth of all residuals tells the tail; fewer tell nothing
LEAST_CHANCE = 1e-100  # below it, a residual is as far off as any
# Points by which a row moves that changes, if no row moves by 100: no text is far from any other by BERTScore. The mean of
# squares over the mean, of the rows that two seeds of the committed baseline answer otherwise, is 15.6.
STEPS = {"bertscore_f1": 15.6}
NoiseKey = tuple[str, str]  # cell or kind of cells, and score
Groups = Sequence[Sequence[float]]  # scores that differ by chance alone within each group
ScoresByKey = Mapping[NoiseKey, Groups]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A standard deviation between trainings, in points."""

    sd: float
    df: float  # degrees of freedom that it rests on
    tail: float = 1.0  # by how much bad trainings lie further off than normal noise would have them; 1 if that is not known

    def tail_of(self, runs: int) -> float:
        """The tail of a mean of so many runs: what it has beyond normal noise shrinks with their root, as skewness does."""
        return 1 + (self.tail - 1) / math.sqrt(runs)


def deviation(groups: Groups) -> Deviation | None:
    """The deviation within groups of scores, pooled over the groups; None where no group has two."""
    several = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in several)
    if not df:
        return None
    return Deviation(sd=(sum((len(group) - 1) * variance(group) for group in several) / df) ** 0.5, df=df)


def resolution(rows: int, metric: str = "") -> float:
    """The least deviation that counts: half of one row's points. A few draws without a flip do not prove that there is none."""
    return STEPS.get(metric, 100.0) / rows / 2


# Tails: some trainings collapse, and a standard deviation does not say how far


def residuals(groups: Groups, floor: float) -> Array:
    """How far each score lies from what the others say of it, as a standard normal draw would; empty for under three scores.

    A score's own deviation is left out of what it is held to, so that a single collapse shows in full (deleted residuals;
    Cook and Weisberg 1982). Of normal scores they follow Student's t, which is turned into the normal. `floor` is the least
    deviation that counts, in points.
    """
    several = [np.asarray(group, float) for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in several)
    if df < 2:
        return np.array([])
    gaps = np.concatenate([group - group.mean() for group in several])
    free = np.concatenate([np.full(len(group), 1 - 1 / len(group)) for group in several])
    others = (gaps @ gaps - gaps**2 / free) / (df - 1)
    t = gaps / np.sqrt(free * np.maximum(others, floor**2))
    scores: Array = -np.sign(t) * special.ndtri(np.maximum(special.stdtr(df - 1, -np.abs(t)), LEAST_CHANCE))
    return scores


def tail(of: Array) -> float:
    """By how much the lowest of these residuals lie further off than a normal's: the ratio of their means; 1 if few tell."""
    if len(of) < LEAST_RESIDUALS:
        return 1.0
    lowest = max(2, math.ceil(LOWEST * len(of)))
    normal = special.ndtri((np.arange(lowest) + 0.5) / len(of))
    return max(1.0, float(np.sort(of)[:lowest].sum() / normal.sum()))


def tails(scores: ScoresByKey, rows: Mapping[str, int]) -> dict[NoiseKey, float]:
    """The tail of each kind of cells and score; at least that of all together: thirty trainings hardly show one in fifty."""
    by_kind: dict[NoiseKey, list[Array]] = defaultdict(list)
    for (cell, metric), groups in scores.items():
        by_kind[kind_of_cell(cell), metric].append(residuals(groups, resolution(rows[cell.split("_")[1]], metric)))
    together = {key: np.concatenate(parts) for key, parts in by_kind.items()}
    common = tail(np.concatenate([*together.values()])) if together else 1.0
    return {key: max(common, tail(own)) for key, own in together.items()}


# Pools


def kind_of_cell(cell: str) -> str:
    """Cells of one backbone and task are of a kind, as in "bert_qa": methods differ less in their noise."""
    return cell.rpartition("_")[0]


def pooled(
    measured: Mapping[NoiseKey, Deviation], rows: Mapping[str, int], scores: ScoresByKey | None = None
) -> dict[NoiseKey, Deviation]:
    """Deviations by cell and score, each moved to what is common to its kind of cells; and that, by kind and score.

    Empirical Bayes (Smyth 2004): variances follow a scaled inverse chi-square, fitted by moments of their logs. Each kind has a
    prior variance of its own, as in limma's trend. The prior's degrees of freedom d0 say how much cells of a kind differ, and
    are common to all. A cell's variance becomes (d0 s0^2 + d s^2) / (d0 + d).

    Three cells of a kind say little of how far a fourth may lie off, so two things are stricter than in limma: the prior never
    counts more than the cell itself (d0 <= d), and of the d0 + d degrees of freedom two are lost to the prior's two parameters.
    Without that, 8 % of simulated equal runs are called worse; with it, 4 % are (`python -m tunegrid.lab power`).
    No deviation counts as less than the test `rows` of its task resolve; `scores` tell the tails.
    """
    kinds: dict[NoiseKey, dict[str, Deviation]] = defaultdict(dict)
    for (cell, metric), own in measured.items():
        floor = resolution(rows[cell.split("_")[1]], metric)
        kinds[kind_of_cell(cell), metric][cell] = Deviation(sd=max(own.sd, floor), df=own.df)
    common_df, far = prior_df(list(kinds.values())), tails(scores or {}, rows)
    pools = {}
    for (kind, metric), cells in kinds.items():
        weight, heavy = min(common_df, *(own.df for own in cells.values()), MOST_DF), far.get((kind, metric), 1.0)
        common = float(np.exp(log_variances(cells).mean() + special.digamma(weight / 2) - np.log(weight / 2)))
        pools[kind, metric] = Deviation(sd=common**0.5, df=max(1.0, weight - PRIOR_PARAMETERS), tail=heavy)
        for cell, own in cells.items():
            sd = ((weight * common + own.df * own.sd**2) / (weight + own.df)) ** 0.5
            df = max(own.df, own.df + (weight if len(cells) > 1 else 0.0) - PRIOR_PARAMETERS)
            pools[cell, metric] = Deviation(sd=sd, df=df, tail=heavy)
    return pools


def log_variances(cells: Mapping[str, Deviation]) -> Array:
    """Logs of variances, without the bias that few degrees of freedom give them."""
    df = np.array([own.df for own in cells.values()])
    logs: Array = np.log([own.sd**2 for own in cells.values()]) - special.digamma(df / 2) + np.log(df / 2)
    return logs


def prior_df(kinds: Sequence[Mapping[str, Deviation]]) -> float:
    """d0, by how far log variances differ within kinds, beyond what their own degrees of freedom explain."""
    several = [cells for cells in kinds if len(cells) > 1]
    if not several:
        return MOST_DF
    spread = sum(len(cells) * float(log_variances(cells).var()) for cells in several)
    chance = fmean(float(special.polygamma(1, own.df / 2)) for cells in several for own in cells.values())
    excess = spread / sum(len(cells) - 1 for cells in several) - chance
    return min(MOST_DF, 2 * inverse_trigamma(excess)) if excess > 0 else MOST_DF


def inverse_trigamma(value: float) -> float:
    """The x whose trigamma is `value`; for small values it is 1 / x."""
    if value < 1e-6:
        return 1 / value
    return float(optimize.brentq(lambda x: special.polygamma(1, x) - value, 1e-6, 1e7, xtol=1e-14, rtol=1e-14))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What training noise does to the scores of one profile."""

    profile: str = ""  # that was calibrated
    rows: Mapping[str, int] = field(default_factory=dict)  # test rows by task; of other test sets, nothing is known
    measured: Mapping[str, Mapping[NoiseKey, Deviation]] = field(default_factory=dict)  # by kind, then by cell and score
    scores: Mapping[str, ScoresByKey] = field(default_factory=dict)  # they were measured with; files older than 0.11.0 lack it

    @cached_property
    def pools(self) -> Mapping[str, Mapping[NoiseKey, Deviation]]:
        """What `pooled` makes of them, by kind of noise."""
        return {kind: pooled(own, self.rows, self.scores.get(kind)) for kind, own in self.measured.items()}

    def of(self, kind: str, record: Record, metric: str) -> Deviation | None:
        """The deviation of a cell's score; its kind's if the cell was not calibrated; None if nothing is known."""
        rows = record.data.rows["test"] if record.data else None
        if record.profile != self.profile or rows != self.rows.get(record.task):
            return None
        pools = self.pools.get(kind, {})
        return pools.get((record.cell, metric), pools.get((kind_of_cell(record.cell), metric)))


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What a file holds of one kind of noise of a cell's score."""

    sd: Annotated[Number, Field(ge=0, le=100)]
    df: Annotated[Number, Field(ge=1, le=10_000)]
    scores: list[list[Annotated[Number, Field(ge=0, le=100)]]] = field(default_factory=list)


def load_noise(path: Path = NOISE) -> Noise:
    """The calibrated noise; none without a file. Raises InputError for one that is not sound."""
    if not path.is_file():
        return Noise()
    with tables(path, "noise", LAB_CALIBRATE) as content:
        rows = {task: int(count) for task, count in checked(content["rows"], dict[str, Number]).items()}
        entries = checked(content["cells"], dict[str, dict[str, dict[Literal["seeds", "perturbed"], _Entry]]])
        known = [((cell, name), kinds) for cell, metrics in entries.items() for name, kinds in metrics.items()]
        if absent := {cell for cell in entries if cell.split("_")[1] not in rows}:
            raise KeyError(f"rows of {min(absent)}")
        own = {kind: {key: kinds[kind] for key, kinds in known if kind in kinds} for kind in (SEEDS, PERTURBED)}
        measured = {kind: {key: Deviation(sd=e.sd, df=e.df) for key, e in keys.items()} for kind, keys in own.items()}
        scores = {kind: {key: e.scores for key, e in keys.items() if e.scores} for kind, keys in own.items()}
        return Noise(profile=str(content["evidence"]["profile"]), rows=rows, measured=measured, scores=scores)


def mean_score(records: Sequence[Record], metric: str) -> float:
    """The mean of a score that all records have."""
    return fmean(score for record in records if (score := record.scores.get(metric)) is not None)
