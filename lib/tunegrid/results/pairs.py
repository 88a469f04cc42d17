"""Is one environment slower than another, or larger? Judges the ratios of paired turns, look by look.

In a round, a process of each makes the updates of a cell in turn, A B B A ..., which gives a pair. The log ratios of a cell's
pairs have a mean and an interval by Student's t. Each of its ends errs in 1 % of comparisons at most, over all cells of a
comparison, their common mean among them, and over all looks (Bonferroni). A change is worse only if its whole interval is
beyond the margin. The looks come after every second round, when each side was first as often as the other.

All cells run on one machine and are disturbed alike, so each cell's variance is moved towards what is common to them (empirical
Bayes, as in `tunegrid.results.noise`). Where cells differ in their noise, each keeps its own. `python -m tunegrid.lab pairs`
prints the error rates. Needs no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import special

from tunegrid.errors import InputError
from tunegrid.results.judgements import Verdict
from tunegrid.results.noise import PRIOR_PARAMETERS, Deviation, log_variances, prior_df
from tunegrid.results.statistics import critical_value

FIRST_LOOK = 4  # rounds: fewer say too little of a variance
LEAST_SD = 1e-4  # of a log ratio: no clock and no page tells less
LogRatios = Mapping[str, Sequence[float]]  # by cell, of its pairs in their order: after over before


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a comparison decides; fixed before it begins.

    Attributes:
        margin: a change that counts. 5 % lies halfway between an equal step and one that is 10 % slower.
        rounds: pairs of turns of a cell, at most.
        alpha: the chance that any cell is called worse, or within the margin, that is not; of each figure that is judged.
    """

    margin: float = 0.05
    rounds: int = 10
    alpha: float = 0.01

    def __post_init__(self) -> None:
        """Raises InputError where such a comparison cannot decide."""
        if self.rounds < FIRST_LOOK or self.rounds % 2:
            raise InputError(f"{self.rounds} rounds: give an even number from {FIRST_LOOK}, since each side is first in turn")
        if not self.margin > 0:
            raise InputError(f"a margin of {100 * self.margin:g} %: nothing is proven to be exactly equal; give more than 0")

    @property
    def looks(self) -> range:
        """The numbers of rounds after which a cell is judged."""
        return range(FIRST_LOOK, self.rounds + 1, 2)

    def critical(self, df: float, tests: int) -> float:
        """How many standard errors an interval reaches to each side, where so many changes are judged."""
        return critical_value(self.alpha / len(self.looks) / tests, df)


@dataclass(frozen=True, kw_only=True)
class Change:
    """How far the second environment is from the first.

    Attributes:
        log_ratio: after over before, its mean over pairs.
        error, df: its standard error, and the degrees of freedom of that.
        reach: of the interval, to each side of `log_ratio`.
        rounds: how many it rests on.
        margin: of the rule.
    """

    log_ratio: float
    error: float
    df: float
    reach: float
    rounds: int
    margin: float

    @property
    def ratio(self) -> float:
        """After over before: 1.1 is 10 % more."""
        return math.exp(self.log_ratio)

    @property
    def low(self) -> float:
        """The lower end of the ratio's interval."""
        return math.exp(self.log_ratio - self.reach)

    @property
    def high(self) -> float:
        """Its upper end."""
        return math.exp(self.log_ratio + self.reach)

    @property
    def verdict(self) -> Verdict:
        """Worse or better if the whole interval is beyond the margin, the same if it lies within."""
        if self.low > 1 + self.margin:
            return Verdict.WORSE
        if self.high < 1 / (1 + self.margin):
            return Verdict.BETTER
        within = self.low > 1 / (1 + self.margin) and self.high < 1 + self.margin
        return Verdict.SAME if within else Verdict.CANNOT_TELL


def judged(pairs: LogRatios, rule: Rule) -> dict[str, Change]:
    """Each cell's change, as of the first look that told it, else of its last look; cells without a look are left out.

    A verdict stands, whatever comes later: the error rate is that of the whole procedure.
    """
    changes: dict[str, Change] = {}
    for look in rule.looks:
        seen = {cell: ratios[:look] for cell, ratios in pairs.items() if len(ratios) >= FIRST_LOOK}
        deviations = moderated({cell: _deviation(ratios) for cell, ratios in seen.items()})
        for cell, ratios in seen.items():
            if len(ratios) == look and not told(changes.get(cell)):
                error = deviations[cell].sd / math.sqrt(look)
                changes[cell] = _change(fmean(ratios), error, deviations[cell].df, look, rule, len(pairs))
    return changes


def told(change: Change | None) -> bool:
    """Whether a change needs no more rounds."""
    return change is not None and change.verdict is not Verdict.CANNOT_TELL


def over_all(changes: Mapping[str, Change], rule: Rule, cells: int) -> Change | None:
    """The geometric mean of all cells' ratios, each counting the same; None where a cell was not judged, or there is but one.

    Its degrees of freedom are Satterthwaite's (1946).
    """
    if len(changes) < cells or cells < 2:
        return None
    squares = [change.error**2 for change in changes.values()]
    df = sum(squares) ** 2 / sum(square**2 / change.df for square, change in zip(squares, changes.values(), strict=True))
    mean, error = fmean(change.log_ratio for change in changes.values()), math.sqrt(sum(squares)) / cells
    return _change(mean, error, df, min(change.rounds for change in changes.values()), rule, cells)


def _change(log_ratio: float, error: float, df: float, rounds: int, rule: Rule, cells: int) -> Change:
    tests = cells + 1 if cells > 1 else 1  # all cells together are one more
    reach = rule.critical(df, tests) * error
    return Change(log_ratio=log_ratio, error=error, df=df, reach=reach, rounds=rounds, margin=rule.margin)


def _deviation(ratios: Sequence[float]) -> Deviation:
    return Deviation(sd=max(stdev(ratios), LEAST_SD), df=len(ratios) - 1)


def moderated(own: Mapping[str, Deviation]) -> dict[str, Deviation]:
    """Deviations of cells, each moved towards what is common to them: the variance becomes (d0 s0^2 + d s^2) / (d0 + d).

    d0 is large where cells have the same noise, and small where they differ (Smyth 2004). Two of the d0 + d degrees of freedom
    are lost to the prior's parameters, and there are never more than all cells have together, as in limma.
    """
    if len(own) < 2:
        return dict(own)
    all_df, weight = sum(deviation.df for deviation in own.values()), prior_df([own])
    common = float(np.exp(log_variances(own).mean() + special.digamma(weight / 2) - np.log(weight / 2)))
    return {
        cell: Deviation(
            sd=math.sqrt((weight * common + deviation.df * deviation.sd**2) / (weight + deviation.df)),
            df=max(deviation.df, min(all_df, deviation.df + weight - PRIOR_PARAMETERS)),
        )
        for cell, deviation in own.items()
    }


def in_words(change: Change, more: str, less: str, same: str) -> str:
    """A change with its interval, as in "4 % slower (2 to 6 %)"; `more`, `less` and `same` are the words of the figure.

    An interval that holds both directions and more than the margin tells nothing, and says so.
    """
    percent, low, high = (round(100 * (ratio - 1)) for ratio in (change.ratio, change.low, change.high))
    if percent < 0:
        percent, low, high, more = -percent, -high, -low, less
    size = f"{percent} % {more}" if percent else same
    hint = ": cannot tell" if change.verdict is Verdict.CANNOT_TELL and change.low < 1 < change.high else ""
    return f"{size} ({low} to {high} %){hint}"
