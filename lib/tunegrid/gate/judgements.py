"""The words of a gate: `Verdict`, what it says; `Judgement`, one verdict with its evidence, and what it counts as."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from tunegrid.record import Record

KINDS = ("numerics", "quality", "memory", "speed", "instruments")  # of figures
CANNOT_TELL = "cannot-tell"
COUNTED = (*KINDS, CANNOT_TELL)  # what may fail a run
# By default. On a machine with other work, speed would fail at random; a change of numerics may be meant.
FAILED_BY = ("quality", "memory")
LEDGER = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes")
PEAKS = ("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib")
TRACED = ("activations_bytes", "peak_bytes")  # of one update, in footprints
SPEEDS = ("step_seconds", "row_seconds", "token_seconds")  # of a median step; to score a row, or generate a token of all rows
RecordsBySeed = Mapping[int | None, Record]  # of one cell


class Verdict(StrEnum):
    """What a gate says, the gravest first: a group of judgements is as grave as its gravest."""

    MISSING = "missing"
    WORSE = "worse"
    CHANGED = "changed"  # of numerics, as equal and rounding
    CANNOT_TELL = "cannot tell"
    NEW = "new"
    BETTER = "better"
    ROUNDING = "rounding"
    SAME = "same"
    EQUAL = "equal"
    NOT_COMPARABLE = "not comparable"


GRAVEST_FIRST = tuple(Verdict)
SAME_NUMERICS = (Verdict.EQUAL, Verdict.ROUNDING)  # but for rounding; other verdicts on numerics need scores


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
    """One verdict with its evidence."""

    cell: str
    main_score: str  # the name of the cell's
    quantity: str  # a score, memory figure, one of `SPEEDS`, numerics, an instrument's as calibration/NLL, or cell
    verdict: Verdict
    before: float | None = None  # of a score: the mean over the runs that were paired
    after: float | None = None
    effect: float | None = None  # new minus old: in points, in an instrument's units, or as a share; None: nothing was compared
    low: float | None = None  # of its 95 % interval
    high: float | None = None
    p: float | None = None  # of being worse; of a main score adjusted over cells
    smallest: float | None = None  # drop that would be called worse four times in five
    error: float | None = None  # standard, by training noise; None: single rows were compared
    margin: float | None = None  # the smallest change that counts, in points
    seeds: int = 1  # runs of the cell that were judged
    first_updates: int | None = None  # of numerics: those that the verdict rests on; None: on a whole run
    stage: str = ""  # of changed numerics: the first that changed, of `tunegrid.gate.numerics.STAGES`
    modules: tuple[tuple[str, str, str], ...] = ()  # the first that changed there, each with its class and library
    # Of a score's drop at one other seed than the baseline's: whether the training that confirms it is worse, too.
    confirmed: Literal["", "open", "yes", "no"] = ""
    detail: str = ""  # what else a reader needs, as why there is no interval

    @property
    def kind(self) -> str:
        """One of `KINDS`; a cell that is missing or new counts as quality."""
        kinds = dict.fromkeys((*LEDGER, *PEAKS, *TRACED), "memory") | dict.fromkeys(SPEEDS, "speed") | {"numerics": "numerics"}
        return "instruments" if "/" in self.quantity else kinds.get(self.quantity, "quality")

    @property
    def decides(self) -> bool:
        """Whether a cell's answer rests on it: scores beside the main one are shown, and count only if they are worse."""
        return self.kind != "quality" or self.quantity in ("cell", self.main_score) or self.verdict is Verdict.WORSE


def make_judgement(record: Record, quantity: str, verdict: Verdict, **evidence: Any) -> Judgement:
    """A verdict on one figure of a cell's record."""
    return Judgement(cell=record.cell, main_score=record.main_score, quantity=quantity, verdict=verdict, **evidence)


def worst(judged: Iterable[Judgement]) -> Verdict | None:
    """The gravest verdict."""
    return min((judgement.verdict for judgement in judged), key=GRAVEST_FIRST.index, default=None)


def tally(verdicts: Iterable[Verdict | None]) -> str:
    """As "25 equal, 1 rounding"."""
    counts = Counter(verdicts)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in GRAVEST_FIRST if counts[verdict])


def by_cell(judged: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements on each cell, in their order."""
    cells: dict[str, list[Judgement]] = {}
    for judgement in judged:
        cells.setdefault(judgement.cell, []).append(judgement)
    return cells


def describe(judgement: Judgement) -> str:
    """As "bert_sa_lora accuracy -3.91 points (20 rows lost ...)"."""
    effect, change = judgement.effect, ""
    if effect is not None:
        share = f"{100 * effect:+.{3 if judgement.quantity in LEDGER else 1}f} %"
        change = " " + {"quality": f"{effect:+.2f} points", "instruments": f"{effect:+.3f}"}.get(judgement.kind, share)
    sees = f"; detects drops from {judgement.smallest:.1f}" if judgement.smallest is not None else ""
    return f"{judgement.cell} {judgement.quantity}{change} ({judgement.detail}{sees})"


def verdict_text(judgement: Judgement) -> str:
    """The same with the verdict before it."""
    return f"{judgement.verdict}: {describe(judgement)}"
