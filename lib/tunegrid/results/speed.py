"""Which of two environments is slower, or larger, and by how much? Reads turns of cells; gives changes, lines and the answer.

Three figures have a ratio per pair of turns: the seconds of an update, the median over the updates of both turns, which train
on the same rows; the seconds of an evaluation; and the most memory that a process held.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from tunegrid.record.turn import Turn
from tunegrid.results.judgements import Outcome, Verdict
from tunegrid.results.pairs import Change, Rule, in_words, judged, over_all, told
from tunegrid.results.table import Column, lines

MIB = 2**20
SIDES = ("before", "after")
Pair = tuple[Turn, Turn]  # of one cell and round: before, after


def update_ratio(before: Turn, after: Turn) -> float | None:
    """The log ratio of an update's seconds: the median, so that a single disturbed update has no effect."""
    pairs = zip(before.update_seconds, after.update_seconds, strict=True)
    return median(math.log(second / first) for first, second in pairs)


def evaluation_ratio(before: Turn, after: Turn) -> float | None:
    """The log ratio of an evaluation's seconds; None where nothing was evaluated."""
    if before.rows_per_second is None or after.rows_per_second is None:
        return None
    return math.log(before.rows_per_second / after.rows_per_second)


def memory_ratio(before: Turn, after: Turn) -> float | None:
    """The log ratio of the peaks; None where the system does not tell them."""
    if before.peak_bytes is None or after.peak_bytes is None:
        return None
    return math.log(after.peak_bytes / before.peak_bytes)


FIGURES: Mapping[str, Callable[[Turn, Turn], float | None]] = {
    "training": update_ratio,
    "evaluation": evaluation_ratio,
    "memory": memory_ratio,
}
WORDS = {"memory": ("larger", "smaller", "the same")}
SPEED_WORDS = ("slower", "faster", "as fast")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two environments, by pairs of turns.

    Attributes:
        pairs: of each cell, in the order of rounds.
    """

    pairs: Mapping[str, Sequence[Pair]]
    rule: Rule

    @cached_property
    def changes(self) -> dict[str, dict[str, Change]]:
        """By figure and cell; a figure that was not measured is left out."""
        ratios = {name: {cell: _ratios(of, pairs) for cell, pairs in self.pairs.items()} for name, of in FIGURES.items()}
        return {name: judged(by_cell, self.rule) for name, by_cell in ratios.items() if any(by_cell.values())}

    @property
    def open_cells(self) -> list[str]:
        """Cells that another round may tell more of: a figure of theirs is not told yet."""
        by_figure = self.changes.values()
        return [cell for cell in self.pairs if not by_figure or not all(told(changes.get(cell)) for changes in by_figure)]

    @cached_property
    def together(self) -> dict[str, Change | None]:
        """Each figure over all cells, or of the only one; None where a cell was not judged."""
        return {name: self._over_all(changes) for name, changes in self.changes.items()}

    def _over_all(self, changes: Mapping[str, Change]) -> Change | None:
        (only, *others) = self.pairs
        return over_all(changes, self.rule, len(self.pairs)) if others else changes.get(only)

    @property
    def outcome(self) -> Outcome:
        """Worse if anything is; no worse if every figure of every cell is told."""
        verdicts = [change.verdict for changes in self.changes.values() for change in changes.values()]
        verdicts += [change.verdict if change else Verdict.CANNOT_TELL for change in self.together.values()]
        if Verdict.WORSE in verdicts:
            return Outcome.WORSE
        return Outcome.CANNOT_TELL if Verdict.CANNOT_TELL in verdicts or not verdicts else Outcome.NO_WORSE

    @property
    def worse_cells(self) -> list[str]:
        """Cells that are worse by any figure."""
        worse = {cell for of in self.changes.values() for cell, change in of.items() if change.verdict is Verdict.WORSE}
        return [cell for cell in self.pairs if cell in worse]

    def equal_memory(self, cells: Sequence[str]) -> bool:
        """Whether peaks of the two sides overlap in each cell: one side's own turns differ as much."""
        return all(_overlap(self.pairs[cell]) for cell in cells)

    # Words

    @property
    def answer(self) -> str:
        """The one line that a reader wants: "Worse: training 4 % slower (2 to 6 %), memory equal"."""
        sentence = ", ".join(f"{name} {self._in_words(name, change, [*self.pairs])}" for name, change in self.together.items())
        count = len(self.pairs)
        over = f" over {count} cells" if count > 1 else ""
        named = f"; worse: {', '.join(self.worse_cells)}" if count > 1 and self.worse_cells else ""
        return f"{self.outcome.capitalize()}: {sentence or 'nothing was measured'}{over}{named}"

    @property
    def table(self) -> list[str]:
        """A line per cell."""
        titles = ("cell", "rounds", "before", "after", *self.changes)
        rows = [self._row(cell, pairs) for cell, pairs in self.pairs.items() if pairs]
        return lines([Column(title=title, gap=2) for title in titles], rows) if rows else []

    def _row(self, cell: str, pairs: Sequence[Pair]) -> list[str]:
        means = [1000 * fmean(fmean(pair[side].update_seconds) for pair in pairs) for side in range(len(SIDES))]
        words = [self._in_words(name, changes.get(cell), [cell]) for name, changes in self.changes.items()]
        return [cell, str(len(pairs)), *(f"{mean:.1f} ms" for mean in means), *words]

    def _in_words(self, name: str, change: Change | None, cells: Sequence[str]) -> str:
        if change is None:
            return "too few rounds"
        if name == "memory" and change.verdict is Verdict.SAME and self.equal_memory(cells):
            return "equal"
        return in_words(change, *WORDS.get(name, SPEED_WORDS))


def _ratios(of: Callable[[Turn, Turn], float | None], pairs: Sequence[Pair]) -> list[float]:
    return [ratio for pair in pairs if (ratio := of(*pair)) is not None]


def _overlap(pairs: Sequence[Pair]) -> bool:
    before, after = ([pair[side].peak_bytes or 0 for pair in pairs] for side in range(len(SIDES)))
    return max(min(before), min(after)) <= min(max(before), max(after))
