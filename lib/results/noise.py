"""How much does training noise alone change a score? In: deviations measured by `calibrate`. Out: the one that applies, pooled.

There are two kinds. *seeds*: trainings that differ in their seed. *perturbed*: trainings of one seed whose starts differ in the
last digits. Which of them separates two runs is decided by evidence in their records. Deviations are in points, 0-100. Needs
no torch.
"""

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, variance

import numpy as np
from scipy import special

from lib.errors import InputError
from lib.record import Record
from lib.results.numerics import Tolerances, arithmetic, losses
from lib.results.statistics import Array

NOISE = Path(__file__).parents[2] / "benchmarks" / "thresholds" / "noise.toml"
SEEDS, PERTURBED = "seeds", "perturbed"


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


def resolution(rows: int) -> float:
    """The least deviation that counts: half of one row's points. A cell that never flipped a row in a few draws has noise, too."""
    return 100 / rows / 2


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Deviations of one score over the cells of a task, each moved towards what is common to them.

    Attributes:
        by_cell: the moderated deviations.
        prior: what is common, for a cell of the task that was not calibrated; None where fewer than two were.
    """

    by_cell: Mapping[str, Deviation]
    prior: Deviation | None


def moderated(measured: Mapping[str, Deviation], floor: float = 0.0) -> Pool:
    """Empirical Bayes (Smyth 2004, section 6.2): variances follow a scaled inverse chi-square, fitted by moments of their logs.

    A cell's variance becomes (d0 s0^2 + d s^2) / (d0 + d), with d0 + d degrees of freedom, and never more than all cells have
    together, as in limma's `squeezeVar`. No deviation counts as less than `floor`.
    """
    variances = np.array([max(each.sd, floor, 1e-9) ** 2 for each in measured.values()])
    own = np.array([each.df for each in measured.values()])
    if len(measured) < 2:
        return Pool(
            by_cell={cell: Deviation(sd=max(each.sd, floor), df=each.df) for cell, each in measured.items()}, prior=None
        )
    prior_variance, prior_df = _prior(variances, own)
    pooled = (prior_df * prior_variance + own * variances) / (prior_df + own)
    freedom = np.minimum(prior_df + own, own.sum())
    by_cell = {cell: Deviation(sd=float(v**0.5), df=float(d)) for cell, v, d in zip(measured, pooled, freedom, strict=True)}
    return Pool(by_cell=by_cell, prior=Deviation(sd=prior_variance**0.5, df=min(prior_df, float(own.sum()))))


def _prior(variances: Array, df: Array) -> tuple[float, float]:
    """The prior's variance and degrees of freedom, by the mean and the variance of log variances (Smyth 2004)."""
    logs = np.log(variances) - special.digamma(df / 2) + np.log(df / 2)
    excess = float(logs.var(ddof=1) - special.polygamma(1, df / 2).mean())
    most = float(1000 * df.sum())  # as good as infinite: the cells differ by no more than chance
    prior_df = min(most, 2 * inverse_trigamma(excess)) if excess > 0 else most
    return float(np.exp(logs.mean() + special.digamma(prior_df / 2) - np.log(prior_df / 2))), prior_df


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
        rows: test rows by task; of another test set, nothing is known.
        pools: by kind, task and score.
    """

    profile: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    pools: Mapping[tuple[str, str, str], Pool] = field(default_factory=dict)

    def of(self, kind: str, record: Record, metric: str) -> Deviation | None:
        """The deviation of a cell's score; its task's where the cell was not calibrated; None where nothing is known."""
        rows = record.data.rows.test if record.data else None
        pool = self.pools.get((kind, record.task, metric))
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
        measured: dict[tuple[str, str, str], dict[str, Deviation]] = defaultdict(dict)
        for cell, metrics in content["cells"].items():
            for metric, kinds in metrics.items():
                for kind, entry in kinds.items():
                    measured[kind, cell.split("_")[1], metric][cell] = Deviation(sd=entry["sd"], df=entry["df"])
        pools = {key: moderated(cells, resolution(rows[key[1]])) for key, cells in measured.items()}
        return Noise(profile=content["evidence"]["profile"], rows=rows, pools=pools)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"{path} holds no noise ({type(error).__name__}: {error}); `python -m lib calibrate` writes it"
        ) from None


def same_start(old: Record, new: Record, tolerances: Tolerances) -> bool:
    """Whether two trainings differ by rounding at most when they start: one seed, one order of rows, one first loss."""
    if old.seeds.seed is None or old.seeds.seed != new.seeds.seed or not old.training or not new.training:
        return False
    before, after, tolerance = losses(old), losses(new), tolerances.get(arithmetic(old))
    if not before or not after or tolerance is None or arithmetic(old) != arithmetic(new):
        return False
    same_order = bool(old.training.order) and old.training.order == new.training.order
    return same_order and abs(before[0] - after[0]) <= tolerance["first"]


def mean_score(records: Sequence[Record], metric: str) -> float:
    """The mean of a score that all records have."""
    return fmean(score for record in records if (score := record.scores.get(metric)) is not None)
