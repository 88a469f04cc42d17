"""The words of a gate: `Verdict`, what it says; `Judgement`, one verdict with its evidence, and what it counts as."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tunegrid.record import Record

KINDS = ("numerics", "quality", "memory", "speed", "instruments")  # of figures
LEDGER = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes")
PEAKS = ("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib")
RecordsBySeed = Mapping[int | None, Record]  # of one cell


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


# A group of judgements is as grave as its gravest.
# Of numerics: what is the same but for rounding, and what needs scores.
SAME_NUMERICS, DOUBTFUL_NUMERICS = (Verdict.EQUAL, Verdict.ROUNDING), (Verdict.CHANGED, Verdict.NOT_COMPARABLE)
GRAVEST_FIRST = (
    Verdict.MISSING,
    Verdict.WORSE,
    Verdict.CHANGED,
    Verdict.TOO_GOOD,
    Verdict.CANNOT_TELL,
    Verdict.NEW,
    Verdict.BETTER,
    Verdict.ROUNDING,
    Verdict.SAME,
    Verdict.EQUAL,
    Verdict.NOT_COMPARABLE,
)


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
        quantity: a score, a memory figure, step_seconds, numerics, learning, or a figure of
            an instrument, as calibration/NLL; "cell" where the whole cell is missing or new.
        before, after: of a score, the means over the runs that were paired.
        effect: new minus old, in points, in the units of the instrument, or as a share; None where nothing was compared.
        low, high: the effect's 95 % interval.
        p: of being worse; of a main score adjusted over cells.
        smallest: the smallest drop that would be called worse four times in five.
        error: the effect's standard error by training noise; None where single rows were compared.
        margin: the smallest drop that counts as a regression, in points.
        seeds: how many runs of the cell were judged.
        first_updates: of numerics, how many updates the verdict rests on; None where it rests on a whole run.
        stage: of changed numerics, the first stage that changed, one of `tunegrid.results.numerics.STAGES`.
        modules: the first that changed there, each with its class and library; empty where none is known.
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
    margin: float | None = None
    seeds: int = 1
    first_updates: int | None = None
    stage: str = ""
    modules: tuple[tuple[str, str, str], ...] = ()
    detail: str = ""

    @property
    def kind(self) -> str:
        """One of `KINDS`; a cell that is missing, new or too good counts as quality."""
        if self.quantity == "numerics":
            return "numerics"
        if self.quantity == "step_seconds" or "/" in self.quantity:
            return "instruments" if "/" in self.quantity else "speed"
        return "memory" if self.quantity in (*LEDGER, *PEAKS) else "quality"

    @property
    def decides(self) -> bool:
        """Whether a cell's answer rests on it: scores beside the main one are shown, and count only where they are worse."""
        is_other_score = self.kind == "quality" and self.quantity not in ("cell", self.main_score)
        return not is_other_score or self.verdict in (Verdict.WORSE, Verdict.TOO_GOOD)


def worst(judged: Iterable[Judgement]) -> Verdict | None:
    """The gravest verdict."""
    return min((judgement.verdict for judgement in judged), key=GRAVEST_FIRST.index, default=None)


def by_cell(judged: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements on each cell, in their order."""
    cells: dict[str, list[Judgement]] = {}
    for judgement in judged:
        cells.setdefault(judgement.cell, []).append(judgement)
    return cells


def judgement_of(record: Record, quantity: str, verdict: Verdict, **evidence: Any) -> Judgement:
    """A verdict on one figure of a cell's record."""
    return Judgement(cell=record.cell, main_score=record.main_score, quantity=quantity, verdict=verdict, **evidence)


def in_words(judgement: Judgement) -> str:
    """A judgement with its evidence, as "worse: bert_sa_lora accuracy -3.91 points (20 rows lost ...)"."""
    return f"{judgement.verdict}: {evidence_of(judgement)}"


def evidence_of(judgement: Judgement) -> str:
    """The same without the verdict."""
    if judgement.effect is None:
        change = ""
    elif judgement.kind == "quality":
        change = f" {judgement.effect:+.2f} points"
    elif judgement.kind == "instruments":
        change = f" {judgement.effect:+.3f}"
    else:
        change = f" {100 * judgement.effect:+.{3 if judgement.quantity in LEDGER else 1}f} %"
    sees = f"; sees drops from {judgement.smallest:.1f}" if judgement.smallest is not None else ""
    return f"{judgement.cell} {judgement.quantity}{change} ({judgement.detail}{sees})"
