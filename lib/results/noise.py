"""How much does training noise alone change a score? In: deviations measured by `calibrate`. Out: the one that applies, pooled.

There are two kinds. *seeds*: trainings that differ in their seed. *perturbed*: trainings of one seed whose starts differ in the
last digits. Which of them separates two runs is decided by evidence in their records (`lib.results.numerics.same_course`).
Deviations are in points, 0-100. Needs no torch.
"""

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance

import numpy as np
from scipy import special

from lib.errors import InputError
from lib.record import Record
from lib.results.statistics import Array

NOISE = Path(__file__).parents[2] / "benchmarks" / "thresholds" / "noise.toml"
SEEDS, PERTURBED = "seeds", "perturbed"
MOST_DF = 1e4  # of a prior: as good as infinite; the cells of a kind differ by no more than chance
PRIOR_PARAMETERS = 2  # its variance and its degrees of freedom, fitted to the same deviations
Key = tuple[str, str]  # cell or kind of cells, and score
# Points by which a row moves that changes, where no row moves by 100: no text is far from any other by BERTScore. The mean of
# squares over the mean, of the rows that two seeds of the committed baseline answer otherwise, is 19.4.
STEPS = {"bertscore_f1": 19.4}


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A standard deviation between trainings, in points, and the degrees of freedom that it rests on."""

    sd: float
    df: float


def deviation(groups: Sequence[Sequence[float]]) -> Deviation | None:
    """The deviation within groups of scores, pooled over the groups; None where no group has two."""
    several = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in several)
    if not df:
        return None
    return Deviation(sd=(sum((len(group) - 1) * variance(group) for group in several) / df) ** 0.5, df=df)


def resolution(rows: int, metric: str = "") -> float:
    """The least deviation that counts: half of one row's points. A few draws without a flip are no proof of none."""
    return STEPS.get(metric, 100.0) / rows / 2


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Deviations of one score over the cells of a kind, each moved towards what is common to them.

    Attributes:
        by_cell: the moderated deviations.
        prior: what is common, for a cell of the kind that was not calibrated.
    """

    by_cell: Mapping[str, Deviation]
    prior: Deviation


def kind_of_cell(cell: str) -> str:
    """Cells of one backbone and task are of a kind, as in "bert_qa": methods differ less in their noise."""
    return cell.rpartition("_")[0]


def pooled(measured: Mapping[Key, Deviation], rows: Mapping[str, int]) -> dict[Key, Pool]:
    """Empirical Bayes (Smyth 2004): variances follow a scaled inverse chi-square, fitted by moments of their logs.

    Each kind has a prior variance of its own, as in limma's trend. The prior's degrees of freedom d0 say how much cells of a
    kind differ, and are common to all. A cell's variance becomes (d0 s0^2 + d s^2) / (d0 + d).

    Three cells of a kind say little of how far a fourth may lie off, so two things are stricter than in limma: the prior never
    counts more than the cell itself (d0 <= d), and of the d0 + d degrees of freedom two are lost to the prior's two parameters.
    Without that, 8 % of simulated equal runs are called worse; with it, 4 % are (`python -m lib power`).

    Args:
        measured: deviations by cell and score.
        rows: test rows by task: no deviation counts as less than they resolve.

    Returns:
        Pools by kind of cell and score.
    """
    kinds: dict[Key, dict[str, Deviation]] = defaultdict(dict)
    for (cell, metric), own in measured.items():
        floor = resolution(rows[cell.split("_")[1]], metric)
        kinds[kind_of_cell(cell), metric][cell] = Deviation(sd=max(own.sd, floor), df=own.df)
    prior_df = _prior_df(list(kinds.values()))
    return {key: _moderated(cells, prior_df) for key, cells in kinds.items()}


def _logs(cells: Mapping[str, Deviation]) -> Array:
    """Logs of variances, without the bias that few degrees of freedom give them."""
    df = np.array([own.df for own in cells.values()])
    logs: Array = np.log([own.sd**2 for own in cells.values()]) - special.digamma(df / 2) + np.log(df / 2)
    return logs


def _prior_df(kinds: Sequence[Mapping[str, Deviation]]) -> float:
    """d0, by how far log variances differ within kinds, beyond what their own degrees of freedom explain."""
    several = [cells for cells in kinds if len(cells) > 1]
    if not several:
        return MOST_DF
    spread = sum(float(((logs := _logs(cells)) - logs.mean()) @ (logs - logs.mean())) for cells in several)
    chance = fmean(float(special.polygamma(1, own.df / 2)) for cells in several for own in cells.values())
    excess = spread / sum(len(cells) - 1 for cells in several) - chance
    return min(MOST_DF, 2 * inverse_trigamma(excess)) if excess > 0 else MOST_DF


def _moderated(cells: Mapping[str, Deviation], prior_df: float) -> Pool:
    weight = min(prior_df, *(own.df for own in cells.values()), MOST_DF)
    prior_variance = float(np.exp(_logs(cells).mean() + special.digamma(weight / 2) - np.log(weight / 2)))
    by_cell = {
        cell: Deviation(
            sd=((weight * prior_variance + own.df * own.sd**2) / (weight + own.df)) ** 0.5,
            df=max(own.df, own.df + (weight if len(cells) > 1 else 0.0) - PRIOR_PARAMETERS),
        )
        for cell, own in cells.items()
    }
    return Pool(by_cell=by_cell, prior=Deviation(sd=prior_variance**0.5, df=max(1.0, weight - PRIOR_PARAMETERS)))


def inverse_trigamma(value: float) -> float:
    """The x whose trigamma is `value`, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if abs(step) < 1e-8 * x:
            break
    return x


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What training noise does to the scores of one profile.

    Attributes:
        profile: the profile that was calibrated.
        rows: test rows by task; of other test sets, nothing is known.
        measured: deviations by kind of noise, then by cell and score, as calibrated.
    """

    profile: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, Mapping[Key, Deviation]] = field(default_factory=dict)

    @cached_property
    def pools(self) -> Mapping[str, Mapping[Key, Pool]]:
        """Pools by kind of noise, then by kind of cell and score."""
        return {kind: pooled(deviations, self.rows) for kind, deviations in self.measured.items()}

    def of(self, kind: str, record: Record, metric: str) -> Deviation | None:
        """The deviation of a cell's score; its kind's where the cell was not calibrated; None where nothing is known."""
        rows = record.data.rows.test if record.data else None
        pool = self.pools.get(kind, {}).get((kind_of_cell(record.cell), metric))
        if pool is None or record.profile != self.profile or rows != self.rows.get(record.task):
            return None
        return pool.by_cell.get(record.cell, pool.prior)


def load_noise(path: Path = NOISE) -> Noise:
    """The calibrated noise; none where the file is not there. Raises InputError where it is not sound."""
    if not path.is_file():
        return Noise()
    try:
        content = tomllib.loads(path.read_text())
        rows: dict[str, int] = content["rows"]
        measured: dict[str, dict[Key, Deviation]] = {SEEDS: {}, PERTURBED: {}}
        for cell, metrics in content["cells"].items():
            for metric, kinds in metrics.items():
                for kind, entry in kinds.items():
                    measured[kind][cell, metric] = Deviation(sd=entry["sd"], df=entry["df"])
        if absent := {cell for cells in measured.values() for cell, _ in cells if cell.split("_")[1] not in rows}:
            raise KeyError(f"rows of {min(absent)}")
        return Noise(profile=content["evidence"]["profile"], rows=rows, measured=measured)
    except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"{path} holds no noise ({type(error).__name__}: {error}); `python -m lib calibrate` writes it"
        ) from None


def mean_score(records: Sequence[Record], metric: str) -> float:
    """The mean of a score that all records have."""
    return fmean(score for record in records if (score := record.scores.get(metric)) is not None)
