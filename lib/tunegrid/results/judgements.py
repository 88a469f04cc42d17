"""The words of a gate: `Verdict`, what it says; `Judgement`, one verdict with its evidence."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tunegrid.record import Record


class Verdict(StrEnum):
    """What a gate says; of numerics: equal, rounding or changed."""

    TOO_GOOD = "too good"
    BETTER = "better"
    SAME = "same"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"
    MISSING = "missing"
    NEW = "new"
    NOT_COMPARABLE = "not comparable"
    EQUAL = "equal"
    ROUNDING = "rounding"
    CHANGED = "changed"


class Outcome(StrEnum):
    """What a gate says of a whole run."""

    NO_WORSE = "no worse"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"

    @property
    def exit_code(self) -> int:
        """0, 1 or 6: pytest itself takes 2 to 5."""
        return {Outcome.NO_WORSE: 0, Outcome.WORSE: 1, Outcome.CANNOT_TELL: 6}[self]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One verdict with its evidence.

    Attributes:
        main_score: the name of the cell's main score.
        quantity: a score, a memory figure, step_seconds, numerics or learning; "cell" where the whole cell is missing or new.
        before, after: of a score, the means over the runs that were paired.
        effect: new minus old, in points or as a share; None where nothing was compared.
        low, high: the effect's 95 % interval.
        p: of being worse; of a main score adjusted over cells and looks.
        smallest: the smallest drop that would be called worse four times in five.
        error: the effect's standard error by training noise; None where single rows were compared.
        critical: how many standard errors a drop must have to be worse.
        margin: the smallest drop that counts as a regression, in points.
        seeds: how many runs of the cell were judged.
        detail: what else a reader needs, as why there is no interval.
    """

    cell: str
    main_score: str
    quantity: str
    verdict: Verdict
    before: float | None = None
    after: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    smallest: float | None = None
    error: float | None = None
    critical: float | None = None
    margin: float | None = None
    seeds: int = 1
    detail: str = ""


def by_cell(judged: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements on each cell, in their order."""
    cells: dict[str, list[Judgement]] = {}
    for judgement in judged:
        cells.setdefault(judgement.cell, []).append(judgement)
    return cells


def judgement_of(record: Record, quantity: str, verdict: Verdict, **evidence: Any) -> Judgement:
    """A verdict on one figure of a cell's record."""
    return Judgement(cell=record.cell, main_score=record.main_score, quantity=quantity, verdict=verdict, **evidence)
