"""Defines a gate's judgements, with their evidence, and which of them can fail a run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from tunegrid.errors import InputError
from tunegrid.record import Record

KINDS = ("numerics", "quality", "memory", "speed", "instruments")  # of figures
CHANGED = "changed"  # changed numerics, or fewer bytes of tensors, call for a decision
SINCE = "; with "  # in details, separates a change from the libraries whose versions differ
CANNOT_TELL = "cannot-tell"  # an undecided main score calls for more seeds
COUNTED = (*KINDS, CHANGED, CANNOT_TELL)  # what a run's exit code may depend on
# On a busy machine, speed would fail at random. A change of numerics may be intended, so it neither
# fails nor passes.
DEFAULT_KINDS = ("quality", "memory", CHANGED)
# A process's resident set depends on the cells that it ran earlier.
NEVER_FAILING = ("rss_peak_gib",)
LEDGER = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes")
PEAKS = ("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib")
TRACED = ("activations_bytes", "peak_bytes")  # of one update, in footprints
SPEEDS = (
    "step_seconds",
    "row_seconds",
    "token_seconds",
)  # of the median step, of predicting a row, of generating a token
RecordsBySeed = Mapping[int | None, Record]  # records of one cell


class Verdict(StrEnum):
    """A gate's verdicts, most severe first; a group of judgements gets its most severe verdict."""

    MISSING = "missing"
    WORSE = "worse"
    CHANGED = "changed"  # for numerics, like equal and rounding, and for fewer bytes in the ledger
    CANNOT_TELL = "cannot tell"
    KNOWN = "known"  # a known fault of a library made an audit fail, so nothing was compared
    NEW = "new"
    BETTER = "better"
    ROUNDING = "rounding"
    SAME = "same"
    EQUAL = "equal"
    NOT_COMPARABLE = "not comparable"


GRAVEST_FIRST = tuple(Verdict)
SAME_NUMERICS = (
    Verdict.EQUAL,
    Verdict.ROUNDING,
)  # equal up to rounding; any other verdict on numerics needs scores


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A single verdict with its evidence."""

    cell: str
    main_score: str  # the name of the cell's main score
    # A score, a memory figure, one of `SPEEDS`, "numerics", an instrument's figure such as
    # calibration/NLL, or "cell".
    quantity: str
    verdict: Verdict
    before: float | None = None  # for a score, the mean over the paired runs
    after: float | None = None
    # New minus old, in points, in an instrument's units, or as a share; None if nothing was
    # compared.
    effect: float | None = None
    low: float | None = None  # lower end of its 95 % interval
    high: float | None = None
    # The p-value for being worse; None if it was not tested. Like the interval, it is not adjusted
    # for the number of figures.
    p: float | None = None
    min_drop: float | None = None  # smallest drop that would be called worse four times in five
    error: float | None = None  # standard error of a score's effect; None for other figures
    margin: float | None = None  # smallest change that counts, in the effect's units
    seeds: int = 1  # number of the cell's runs that were judged
    # For numerics, the number of first updates that the verdict rests on; None for a whole run.
    first_updates: int | None = None
    # For changed numerics, the first stage that changed (one of `tunegrid.gate.numerics.STAGES`).
    stage: str = ""
    # The first modules that changed there, each with its class and library.
    modules: tuple[tuple[str, str, str], ...] = ()
    # For a score's drop at a single seed that the baseline lacks, whether the confirming training
    # run is worse, too.
    confirmed: Literal["", "open", "yes", "no"] = ""
    detail: str = ""  # other useful facts, such as why there is no interval

    @property
    def kind(self) -> str:
        """The kind of figure, one of `KINDS`; a missing or new cell counts as quality."""
        if "/" in self.quantity:
            return "instruments"
        if self.quantity == "numerics":
            return "numerics"
        if self.quantity in (*LEDGER, *PEAKS, *TRACED):
            return "memory"
        return "speed" if self.quantity in SPEEDS else "quality"

    @property
    def decides(self) -> bool:
        """Checks whether this affects the cell's verdict; minor scores do so only if worse."""
        if self.quantity in NEVER_FAILING:
            return False
        return (
            self.kind != "quality"
            or self.quantity in ("cell", self.main_score)
            or self.verdict is Verdict.WORSE
        )


def make_judgement(record: Record, quantity: str, verdict: Verdict, **evidence: Any) -> Judgement:
    """Creates the judgement on one figure of the record's cell."""
    return Judgement(
        cell=record.cell,
        main_score=record.main_score,
        quantity=quantity,
        verdict=verdict,
        **evidence,
    )


def worst(judged: Iterable[Judgement]) -> Verdict | None:
    """The most severe verdict, or None if nothing was judged."""
    return min((judgement.verdict for judgement in judged), key=GRAVEST_FIRST.index, default=None)


def tally(verdicts: Iterable[Verdict | None]) -> str:
    """Counts verdicts, for example "25 equal, 1 rounding"."""
    counts = Counter(verdicts)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in GRAVEST_FIRST if counts[verdict])


def by_cell(judged: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """Groups judgements by cell, keeping their order."""
    cells: dict[str, list[Judgement]] = {}
    for judgement in judged:
        cells.setdefault(judgement.cell, []).append(judgement)
    return cells


def describe(judgement: Judgement) -> str:
    """Describes a change, for example "bert_sa_lora accuracy -3.91 points (20 rows lost ...)"."""
    effect = judgement.effect
    if effect is None:
        change = ""
    elif judgement.kind == "quality":
        change = f" {effect:+.2f} points"
    elif judgement.kind == "instruments":
        change = f" {effect:+.3f}"
    else:
        digits = 3 if judgement.quantity in LEDGER else 1
        change = f" {100 * effect:+.{digits}f} %"
    detail = judgement.detail
    if judgement.min_drop is not None:
        detail += f"; detects drops from {judgement.min_drop:.1f}"
    return f"{judgement.cell} {judgement.quantity}{change} ({detail})"


def verdict_text(judgement: Judgement) -> str:
    """The verdict and its description, like "worse: bert_sa_lora accuracy -3.91 points (...)"."""
    return f"{judgement.verdict}: {describe(judgement)}"


# Which judgements count


def parse_kinds(text: str, known: Sequence[str] = COUNTED) -> tuple[str, ...]:
    """Parses a comma-separated list of kinds; raises InputError for an unknown one."""
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in known:
            names = ",".join(known)
            raise InputError(f"unknown kind of figure {kind!r}: expected some of {names}")
    return kinds


def find_worse(judged: Iterable[Judgement], kinds: Sequence[str]) -> list[Judgement]:
    """The judgements that fail a run: missing cells, worse figures and changed numerics.

    Missing cells always count; figures count only if their kind is one of `kinds`.
    """
    return [judgement for judgement in judged if _fails(judgement, kinds)]


def _fails(judgement: Judgement, kinds: Sequence[str]) -> bool:
    if judgement.verdict is Verdict.MISSING:
        return True
    if judgement.kind not in kinds or judgement.quantity in NEVER_FAILING:
        return False
    if judgement.verdict is Verdict.CHANGED:
        return judgement.kind == "numerics"
    return judgement.verdict is Verdict.WORSE


def main_scores(judged: Iterable[Judgement], *verdicts: Verdict) -> list[Judgement]:
    """The judgements on main scores, restricted to these verdicts if any are given."""
    mains = [judgement for judgement in judged if judgement.quantity == judgement.main_score]
    return [judgement for judgement in mains if not verdicts or judgement.verdict in verdicts]


def was_compared(judgement: Judgement) -> bool:
    """Checks whether the figure was compared, even if the result is undecided."""
    if judgement.verdict is Verdict.CANNOT_TELL:
        return judgement.p is not None
    return judgement.verdict not in (Verdict.NOT_COMPARABLE, Verdict.NEW, Verdict.KNOWN)


def uncompared_kinds(judged: Sequence[Judgement], kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` for which no figure (for quality, no main score) could be compared.

    Kinds without judgements are left out, except speed and instruments. If that leaves no kind
    although nothing was compared, returns all kinds of figures in `kinds`.
    """
    names = []
    for kind in KINDS:
        figures = [judgement for judgement in judged if judgement.kind == kind]
        if kind == "quality":
            figures = main_scores(figures)
        is_asked = bool(figures) or kind in (
            "speed",
            "instruments",
        )  # not counted by default
        if kind in kinds and is_asked and not any(map(was_compared, figures)):
            names.append(kind)
    compared = [
        judgement for judgement in judged if judgement.kind in kinds and was_compared(judgement)
    ]
    counted = [kind for kind in KINDS if kind in kinds]
    return names if names or compared else counted
