"""Says which judgements count, and what they come to for the whole run."""

from collections.abc import Mapping, Sequence

from tunegrid.errors import InputError
from tunegrid.results.judgements import DOUBTFUL_NUMERICS, KINDS, Judgement, Outcome, Verdict
from tunegrid.results.numerics import STAGES

TOO_GOOD = "too-good"
CANNOT_TELL = "cannot-tell"
COUNTED = (*KINDS, TOO_GOOD, CANNOT_TELL)  # what may fail a run
# By default. On a machine with other work, speed would fail at random; a change of numerics may be meant.
FAILED_BY = ("quality", "memory")
# Shown, never failed by: a process's resident set depends on the cells that it ran before.
NEVER_FAILING = ("rss_peak_gib",)
# Quantities whose changes are named by the first stage: what a sentence calls them, and their stages.
FLOWS: Mapping[str, tuple[str, Sequence[str]]] = {
    "numerics": ("Numerics", STAGES),
}


def kinds_of(text: str) -> tuple[str, ...]:
    """Kinds of figures, divided by commas; raises InputError for a name that is none."""
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in COUNTED:
            raise InputError(f"unknown kind of figure {kind!r}: expected some of {','.join(COUNTED)}")
    return kinds


def figures_of(kinds: Sequence[str]) -> list[str]:
    """Those that are kinds of figures, which can be compared."""
    return [kind for kind in kinds if kind in KINDS]


def failing(judged: Sequence[Judgement], kinds: Sequence[str]) -> list[Judgement]:
    """What of these kinds is worse, of numerics changed, or too good, and every missing cell."""
    return [
        j
        for j in judged
        if j.verdict is Verdict.MISSING
        or (j.kind in kinds and j.verdict is Verdict.WORSE and j.quantity not in NEVER_FAILING)
        or ("numerics" in kinds and j.quantity in FLOWS and j.verdict is Verdict.CHANGED)
        or (TOO_GOOD in kinds and j.verdict is Verdict.TOO_GOOD)
    ]


def undecided(judged: Sequence[Judgement]) -> list[Judgement]:
    """The main scores that cannot be told."""
    return [j for j in judged if j.quantity == j.main_score and j.verdict is Verdict.CANNOT_TELL]


def outcome(judged: Sequence[Judgement], kinds: Sequence[str]) -> Outcome:
    """What the judgements say of the whole run.

    It cannot be told where no main score could be tested, or nothing of the kinds that count could be compared; with
    `cannot-tell` among these, where any main score cannot be told.
    """
    if failing(judged, kinds):
        return Outcome.WORSE
    mains = [j for j in judged if j.quantity == j.main_score]
    if doubtful_beginnings(judged):
        return Outcome.CANNOT_TELL
    doubtful = undecided(mains)
    untested = bool(mains) and all(j in doubtful and j.p is None for j in mains)
    doubt = ("quality" in kinds and untested) or (CANNOT_TELL in kinds and bool(doubtful))
    return Outcome.CANNOT_TELL if doubt or _nothing_compared(judged, kinds) else Outcome.NO_WORSE


def doubtful_beginnings(judged: Sequence[Judgement]) -> list[Judgement]:
    """First updates that are not the baseline's, or could not be compared, of cells that took no score."""
    return [j for j in judged if j.quantity == "numerics" and j.first_updates and j.verdict in DOUBTFUL_NUMERICS]


def _nothing_compared(judged: Sequence[Judgement], kinds: Sequence[str]) -> bool:
    counted = figures_of(kinds)
    own = [j for j in judged if j.kind in counted]
    silent = [
        j
        for j in own
        if j.verdict in (Verdict.NOT_COMPARABLE, Verdict.NEW) or (j.verdict is Verdict.CANNOT_TELL and j.p is None)
    ]
    return bool(counted) and own == silent
