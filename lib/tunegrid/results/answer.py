"""Gives the answer to a whole run: its sentences and its exit code.

Terminal, step summary, page and JUnit print this answer, so none of them can say what another denies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.judgements import KINDS, Judgement, Outcome, Verdict
from tunegrid.results.numerics import STAGES
from tunegrid.results.passing import below_bounds

TOO_GOOD = "too-good"
CANNOT_TELL = "cannot-tell"
COUNTED = (*KINDS, TOO_GOOD, CANNOT_TELL)  # what may fail a run
# By default. On a machine with other work, speed would fail at random; a change of numerics may be meant.
FAILED_BY = ("quality", "memory")
# Shown, never failed by: a process's resident set depends on the cells that it ran before.
NEVER_FAILING = ("rss_peak_gib",)
FLOW = (*STAGES, "evaluation")
# How a cell can go wrong, in the order in which causes are told; failed audits come before all of them, by name.
BOUND, FIGURES, ERROR, STOPPED, UNFINISHED = (
    "missed a bound",
    "had wrong figures",
    "broke off",
    "stopped early",
    "did not finish",
)
CAUSES = (BOUND, FIGURES, ERROR, STOPPED, UNFINISHED)
SHOWN = 3  # places that a sentence names


class State(StrEnum):
    """What an answer comes to."""

    FAILED = "failed"
    CANNOT_TELL = "cannot tell"
    PASSED = "passed"
    REPORTED = "reported"
    EMPTY = "empty"


Statement = tuple[State, str]  # one sentence, and what it makes of the run


@dataclass(frozen=True, kw_only=True)
class RunAnswer:
    """What is to be said of a run.

    Attributes:
        state: of the first sentence, which is that of the run.
        sentences: the first one is the headline.
        failing: the judgements that fail the run.
    """

    state: State
    sentences: tuple[str, ...]
    failing: Sequence[Judgement] = ()

    @property
    def exit_code(self) -> int:
        """0, 1 or 6."""
        codes = {State.FAILED: Outcome.WORSE.exit_code, State.CANNOT_TELL: Outcome.CANNOT_TELL.exit_code}
        return codes.get(self.state, 0)

    @property
    def text(self) -> str:
        """All sentences, as one paragraph."""
        return " ".join(self.sentences)


def answer_of(
    records: Sequence[Record],
    judged: Sequence[Judgement] = (),
    kinds: Sequence[str] = FAILED_BY,
    *,
    baseline: str = "the baseline",
    troubles: Sequence[str] = (),
) -> RunAnswer:
    """The answer to a run: what fails it comes first, then what cannot be told, then the rest.

    Among equals, the order is that of the run's own flow::

                        fails the run                     cannot be told     else
        1. cells        failed, by cause; troubles        -                  passed, with or without bounds
        2. numerics     changed, if numerics count        -                  changed, not changed
        3. figures      missing, worse, what else counts  no score tested    no worse
        4. gains        (with the figures, if they count) -                  too good

    Args:
        records: of the run, finished or not.
        judged: the gate's judgements; empty without a gate.
        kinds: of figures that fail a run.
        baseline: the name of the run that was compared with.
        troubles: what else makes the run fail, as "1 other test failed".
    """
    statements, bad = [_of_cells(records, troubles)], failing(judged, kinds)
    if judged:
        statements += [*_of_numerics(judged, kinds), *_of_figures(judged, bad, kinds, baseline), *_of_gains(judged, bad)]
    order = (State.FAILED, State.CANNOT_TELL)
    statements.sort(key=lambda one: order.index(one[0]) if one[0] in order else len(order))
    state, (first, *others) = statements[0][0], [sentence for _, sentence in statements]
    head = f"Passed: {first[0].lower()}{first[1:]}" if state is State.PASSED else first
    return RunAnswer(state=state, sentences=(head, *others), failing=bad)


# Cells


def _of_cells(records: Sequence[Record], troubles: Sequence[str]) -> Statement:
    total = _count(len(_cells(records)), "cell")
    counts = [(len(_cells(bad)), cause) for cause, bad in _by_cause(records)]
    causes = [f"{count} {cause}" if index else f"{count} of {total} {cause}" for index, (count, cause) in enumerate(counts)]
    if causes or troubles:
        return State.FAILED, f"Failed: {', '.join([*causes, *troubles])}."
    if not records:
        return State.EMPTY, "Nothing to show: this run holds no cell that was run."
    if all(record.status == "reported" for record in records):
        return State.REPORTED, f"Reported: {_count(len(_cells(records)), 'result')} as published; nothing was run here."
    all_of = "The one cell" if total == "1 cell" else f"All {total}"
    return State.PASSED, f"{all_of} {_bounds(records)} {_audits(records)}."


def _by_cause(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """The records that went wrong by cause: audits first, the one that most cells failed before the others."""
    bad: dict[str, list[Record]] = {}
    for record in records:
        for cause in causes_of(record):
            bad.setdefault(cause, []).append(record)
    order = {cause: index for index, cause in enumerate(CAUSES)}
    return sorted(bad.items(), key=lambda item: (order.get(item[0], -1), -len(_cells(item[1]))))


def causes_of(record: Record) -> list[str]:
    """Why a record did not pass; empty where it did."""
    if record.status in ("passed", "reported"):
        return []
    names = [audit.name for audit in record.audits if not audit.passed]
    audits = [f"failed audit {name}" for name in names if any(f"audit {name}: " in sentence for sentence in record.missed)]
    if record.status == "missed":
        below = [BOUND] if below_bounds(record.scores, record.bounds) else []
        return audits + below or [FIGURES]
    return audits or [{"stopped": STOPPED, "error": ERROR}.get(record.status, UNFINISHED)]


def _bounds(records: Sequence[Record]) -> str:
    bounded = [bool(record.bounds) for record in records]
    if all(bounded):
        return "reached every bound"
    return "reached every bound there is" if any(bounded) else "ran to the end, without bounds,"


def _audits(records: Sequence[Record]) -> str:
    objecting = [record for record in records if not all(audit.passed for audit in record.audits)]
    if objecting:
        names = dict.fromkeys(audit.name for record in objecting for audit in record.audits if not audit.passed)
        return f"but audits that do not count here object in {_count(len(_cells(objecting)), 'cell')} ({_some(list(names))})"
    return "and passed every audit" if all(record.audits for record in records) else "but not every cell was audited"


def _cells(records: Iterable[Record]) -> set[tuple[str, str]]:
    return {(record.profile, record.cell) for record in records}


# Judgements


def _of_numerics(judged: Sequence[Judgement], kinds: Sequence[str]) -> Iterable[Statement]:
    """Whether numerics changed, in how many cells, and at which stage of the flow first."""
    numerics = [j for j in judged if j.quantity == "numerics"]
    changed = [j for j in numerics if j.verdict is Verdict.CHANGED]
    counts, total = "numerics" in kinds, _count(len(numerics), "cell")
    if changed:
        stages = [j.detail.partition(": ")[0] for j in changed]
        first = min(stages, key=lambda stage: FLOW.index(stage) if stage in FLOW else len(FLOW))
        sample = changed[stages.index(first)]
        where = f"{_count(stages.count(first), 'cell')}, as in {sample.cell}: {sample.detail.partition(': ')[2]}"
        sentence = f"umerics changed in {len(changed)} of {total}, first at the stage {first} ({where})"
        yield (State.FAILED, f"Failed: n{sentence}.") if counts else (State.PASSED, f"N{sentence}; that does not count here.")
    elif counts:
        unlike = [j for j in numerics if j.verdict is Verdict.NOT_COMPARABLE]
        doubt = f"; {_count(len(unlike), 'cell')} cannot be compared ({unlike[0].detail})" if unlike else ""
        untested = outcome(judged, kinds) is Outcome.CANNOT_TELL
        state = State.CANNOT_TELL if untested and len(unlike) == len(numerics) else State.PASSED
        yield state, f"Numerics did not change in {len(numerics) - len(unlike)} of {total}{doubt}."


def _of_figures(
    judged: Sequence[Judgement], bad: Sequence[Judgement], kinds: Sequence[str], baseline: str
) -> Iterable[Statement]:
    """What is worse or missing of the figures that count, numerics aside; or whether that can be told."""
    others = [kind for kind in figures_of(kinds) if kind != "numerics"]
    figures = [j for j in bad if j.quantity != "numerics"]
    if figures:
        groups = {
            verdict: [j for j in figures if j.verdict is verdict] for verdict in dict.fromkeys(j.verdict for j in figures)
        }
        parts = [f"{_in(group)} {verdict} ({_list_of_cells(group)})" for verdict, group in groups.items()]
        yield State.FAILED, f"Failed against {baseline}: {', '.join(parts)}."
    elif (others or (CANNOT_TELL in kinds and undecided(judged))) and outcome(judged, kinds) is Outcome.CANNOT_TELL:
        yield State.CANNOT_TELL, f"Cannot tell whether the run is worse than {baseline}: {_doubt(judged, others)}."
    elif others:
        doubts = [j for j in judged if j.verdict is Verdict.CANNOT_TELL and j.decides and j.kind in others]
        doubt = f", though the gate cannot tell for {_count(len(doubts), 'main score')}" if doubts else ""
        yield State.PASSED, f"By {_joined(others)} no worse than {baseline}{doubt}."


def _doubt(judged: Sequence[Judgement], kinds: Sequence[str]) -> str:
    """Why nobody can tell."""
    doubtful = undecided(judged)
    if not doubtful:
        return f"nothing of {_joined(kinds)} could be compared"
    if all(j.p is None for j in judged if j.quantity == j.main_score):
        return f"no main score could be tested ({doubtful[0].cell} {doubtful[0].quantity}: {doubtful[0].detail})"
    return f"{_in(doubtful)} cannot be told ({_list_of_cells(doubtful)})"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _of_gains(judged: Sequence[Judgement], bad: Sequence[Judgement]) -> Iterable[Statement]:
    """What is too good to be believed; where that counts, it stands among what fails."""
    suspect = [j for j in judged if j.verdict is Verdict.TOO_GOOD and j not in bad]
    if suspect:
        yield State.PASSED, f"Too good in {_in(suspect)} ({_list_of_cells(suspect)}): look for leaked rows or a lost mask."


def _in(judged: Sequence[Judgement]) -> str:
    return _count(len({judgement.cell for judgement in judged}), "cell")


def _list_of_cells(judged: Sequence[Judgement]) -> str:
    return _some(list(dict.fromkeys(j.cell if j.quantity == "cell" else f"{j.cell} {j.quantity}" for j in judged)))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# What counts


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
        or ("numerics" in kinds and j.quantity == "numerics" and j.verdict is Verdict.CHANGED)
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
    doubtful = undecided(mains)
    untested = bool(mains) and all(j in doubtful and j.p is None for j in mains)
    doubt = ("quality" in kinds and untested) or (CANNOT_TELL in kinds and bool(doubtful))
    return Outcome.CANNOT_TELL if doubt or _nothing_compared(judged, kinds) else Outcome.NO_WORSE


def _nothing_compared(judged: Sequence[Judgement], kinds: Sequence[str]) -> bool:
    counted = figures_of(kinds)
    own = [j for j in judged if j.kind in counted]
    silent = [
        j
        for j in own
        if j.verdict in (Verdict.NOT_COMPARABLE, Verdict.NEW) or (j.verdict is Verdict.CANNOT_TELL and j.p is None)
    ]
    return bool(counted) and own == silent
