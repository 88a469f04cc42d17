"""Which of two environments is slower, or larger, and by how much? Judges the ratios of paired turns.

In a round, a process of each makes the updates of a cell in turn, which gives two log ratios: of an update's seconds, and of
the most memory that a process held. Over the rounds of a cell they have a mean and an interval by Student's t. Each of its ends
errs in 1 % of comparisons at most, over all cells, their common mean among them, and over all looks (Bonferroni).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from scipy import special

from tunegrid.results.judgements import Outcome, Verdict
from tunegrid.results.noise import PRIOR_PARAMETERS, Deviation, log_variances, prior_df
from tunegrid.results.statistics import critical_value

MARGIN = 0.05  # a change that counts: halfway between an equal step and one that is 10 % slower
ALPHA = 0.01  # the chance that any cell is called worse, or within the margin, that is not; of each figure
LOOKS = (4, 6, 8, 10)  # rounds after which a cell is judged: each side was first as often as the other
LEAST_SD = 1e-4  # of a log ratio: no clock and no page tells less
ALL = "all cells"
WORDS = {"training": ("slower", "faster", "as fast"), "memory": ("larger", "smaller", "the same")}  # of each figure
Answers = Sequence[Mapping[str, Any]]  # of the updates of a turn: seconds, and peak_bytes until then


def log_ratios(before: Answers, after: Answers) -> dict[str, float]:
    """After over before, by figure: of seconds the median over updates, so that a single disturbed one has no effect."""
    training = median(math.log(new["seconds"] / old["seconds"]) for old, new in zip(before, after, strict=True))
    peaks = [turn[-1]["peak_bytes"] for turn in (before, after)]  # None where the system does not tell
    return {"training": training} | ({"memory": math.log(peaks[1] / peaks[0])} if all(peaks) else {})


@dataclass(frozen=True, kw_only=True)
class Change:
    """How far the second environment is from the first.

    Attributes:
        log_ratio: after over before, its mean over rounds.
        error, df: its standard error, and the degrees of freedom of that.
        cells: how many are judged at once.
    """

    log_ratio: float
    error: float
    df: float
    cells: int = 1

    @property
    def interval(self) -> tuple[float, float]:
        """Of the ratio after over before: 1.1 is 10 % more."""
        tests = self.cells + 1 if self.cells > 1 else 1  # all cells together are one more
        reach = critical_value(ALPHA / len(LOOKS) / tests, self.df) * self.error
        return math.exp(self.log_ratio - reach), math.exp(self.log_ratio + reach)

    @property
    def verdict(self) -> Verdict:
        """Worse or better if the whole interval is beyond the margin, the same if it lies within."""
        (low, high), most = self.interval, 1 + MARGIN
        if low > most or high < 1 / most:
            return Verdict.WORSE if low > most else Verdict.BETTER
        return Verdict.SAME if 1 / most < low and high < most else Verdict.CANNOT_TELL

    def in_words(self, more: str, less: str, same: str) -> str:
        """As in "4 % slower (2 to 6 %)"; an interval that holds both directions and more than the margin tells nothing."""
        hint = ": cannot tell" if self.verdict is Verdict.CANNOT_TELL and self.interval[0] < 1 < self.interval[1] else ""
        percent, low, high = (round(100 * (ratio - 1)) for ratio in (math.exp(self.log_ratio), *self.interval))
        if percent < 0:
            percent, low, high, more = -percent, -high, -low, less
        return f"{f'{percent} % {more}' if percent else same} ({low} to {high} %){hint}"


def told(change: Change | None) -> bool:
    """Whether a change needs no more rounds."""
    return change is not None and change.verdict is not Verdict.CANNOT_TELL


def judged(ratios: Mapping[str, Sequence[float]]) -> dict[str, Change]:
    """Each cell's change, as of the first look that told it, else of its last look; cells without a look are left out.

    A verdict stands, whatever comes later: the error rate is that of the whole procedure. So are several cells together.
    """
    changes: dict[str, Change] = {}
    for look in LOOKS:
        seen = {cell: own[:look] for cell, own in ratios.items() if len(own) >= LOOKS[0]}
        noise = moderated({cell: Deviation(sd=max(stdev(own), LEAST_SD), df=len(own) - 1) for cell, own in seen.items()})
        for cell, own in seen.items():
            if len(own) == look and not told(changes.get(cell)):
                error, df = noise[cell].sd / math.sqrt(look), noise[cell].df
                changes[cell] = Change(log_ratio=fmean(own), error=error, df=df, cells=len(ratios))
    return changes | ({ALL: over_all(changes.values())} if len(changes) == len(ratios) > 1 else {})


def over_all(changes: Iterable[Change]) -> Change:
    """The geometric mean of all cells' ratios, each counting the same; its degrees of freedom are Satterthwaite's (1946)."""
    means, squares, dfs = zip(*((change.log_ratio, change.error**2, change.df) for change in changes), strict=True)
    df = sum(squares) ** 2 / sum(square**2 / df for square, df in zip(squares, dfs, strict=True))
    return Change(log_ratio=fmean(means), error=math.sqrt(sum(squares)) / len(means), df=df, cells=len(means))


def moderated(own: Mapping[str, Deviation]) -> dict[str, Deviation]:
    """Deviations of cells, which one machine disturbs alike, each moved towards what is common to them (Smyth 2004).

    The variance becomes (d0 s0^2 + d s^2) / (d0 + d); d0 is large where cells have the same noise, and small where they differ.
    Two of the d0 + d degrees of freedom are lost to the prior's parameters; there are no more than all cells have together.
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two environments, by the log ratios of each cell in the order of its rounds."""

    ratios: Mapping[str, Sequence[Mapping[str, float]]]

    @cached_property
    def changes(self) -> dict[str, dict[str, Change]]:
        """By figure, then by cell and of all cells; a figure that was not measured is left out."""
        own = {figure: {c: [r[figure] for r in of if figure in r] for c, of in self.ratios.items()} for figure in WORDS}
        return {figure: judged(by_cell) for figure, by_cell in own.items() if any(by_cell.values())}

    @property
    def open_cells(self) -> list[str]:
        """Cells that another round may tell more of: a figure of theirs is not told yet."""
        figures = self.changes.values()
        return [cell for cell in self.ratios if not figures or not all(told(changes.get(cell)) for changes in figures)]

    @property
    def outcome(self) -> Outcome:
        """Worse if anything is; no worse if every figure of every cell, and of all together, is told."""
        verdicts = {change.verdict for changes in self.changes.values() for change in changes.values()}
        if Verdict.WORSE in verdicts:
            return Outcome.WORSE
        return Outcome.CANNOT_TELL if self.open_cells or Verdict.CANNOT_TELL in verdicts else Outcome.NO_WORSE

    @property
    def report(self) -> list[str]:
        """A line for each of several cells, then the answer, as "Worse: training 9 % slower (7 to 11 %), memory ..."."""
        *cells, last = [*self.ratios, ALL] if len(self.ratios) > 1 else self.ratios
        answer = f"{self.outcome.capitalize()}: {self._in_words(last)}" + (f" over {len(cells)} cells" if cells else "")
        return [*(f"{cell}: {self._in_words(cell)}" for cell in cells), answer]

    def _in_words(self, cell: str) -> str:
        said = {name: changes[cell].in_words(*WORDS[name]) for name, changes in self.changes.items() if cell in changes}
        return ", ".join(f"{name} {words}" for name, words in said.items()) or "too few rounds"
