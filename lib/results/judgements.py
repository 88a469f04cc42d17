"""The words of a gate. In: nothing. Out: `Verdict`, what a gate says; `Judgement`, one verdict with its evidence."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a gate says; of numerics: equal, rounding or changed."""

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


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One verdict with its evidence.

    Attributes:
        main_score: the name of the cell's main score.
        quantity: a score, a memory figure, step_seconds or numerics; "cell" where the whole cell is missing or new.
        effect: new minus old, in points or as a share; None where nothing was compared.
        low, high: the effect's 95 % interval; p: of being worse, adjusted over the cells.
        smallest: the smallest drop that this test set would show four times in five.
        detail: what else a reader needs, as why there is no interval.
    """

    cell: str
    main_score: str
    quantity: str
    verdict: Verdict
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    smallest: float | None = None
    detail: str = ""
