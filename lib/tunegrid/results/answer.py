"""Gives the answer to a whole run: its sentences and its exit code.

The first line is the answer, the second its cause, the third the way on. Terminal, step summary, page, JUnit and annotations
print these lines, so none of them can say what another denies.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.results import next_steps
from tunegrid.results.failures import AUDIT, BOUND, KILLED, NOT_RUN, UNFINISHED, cells_of, failures_of, said_of
from tunegrid.results.judgements import (
    DOUBTFUL_NUMERICS,
    GRAVEST_FIRST,
    SAME_NUMERICS,
    Judgement,
    Outcome,
    Verdict,
    evidence_of,
)
from tunegrid.results.outcomes import (
    CANNOT_TELL,
    FAILED_BY,
    FLOWS,
    doubtful_beginnings,
    failing,
    figures_of,
    outcome,
    undecided,
)
from tunegrid.results.table import count, joined, out_of, some


class State(StrEnum):
    """What an answer comes to."""

    FAILED = "failed"
    CANNOT_TELL = "cannot tell"
    BEGUN = "begun"
    PASSED = "passed"
    REPORTED = "reported"
    EMPTY = "empty"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One thing to be said of a run.

    Attributes:
        state: what it makes of the run.
        sentence: without its cause.
        cause: why it is so, and `way_on`, what helps: each a sentence's part, or empty.
    """

    state: State
    sentence: str
    cause: str = ""
    way_on: str = ""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What is said at the end, wherever it is said.

    Attributes:
        answer: the first line, a sentence.
        cause: the second one: why it is so, as a sentence's part; where it is empty, the first of `more` is the second line.
        way_on: the third one: what to do about it, as a sentence's part; empty where nothing is to be done.
        more: what else is to be said, as sentences.
    """

    answer: str
    cause: str = ""
    way_on: str = ""
    more: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All lines in their order."""
        labelled = (("Cause", self.cause), ("Next", self.way_on))
        cause, way_on = ([f"{label}: {text}."] if text else [] for label, text in labelled)
        second, rest = (cause, self.more) if cause else (self.more[:1], self.more[1:])
        return (self.answer, *second, *way_on, *rest)


@dataclass(frozen=True, kw_only=True)
class RunAnswer(Lines):
    """What is to be said of a run.

    Attributes:
        state: of the first sentence, which is that of the run.
        failing: the judgements that fail the run.
    """

    state: State
    failing: Sequence[Judgement] = ()

    @property
    def exit_code(self) -> int:
        """0, 1 or 6."""
        codes = {State.FAILED: Outcome.WORSE.exit_code, State.CANNOT_TELL: Outcome.CANNOT_TELL.exit_code}
        return codes.get(self.state, 0)


def answer_of(
    records: Sequence[Record],
    judged: Sequence[Judgement] = (),
    kinds: Sequence[str] = FAILED_BY,
    *,
    baseline: str = "the baseline",
    before: Sequence[Record] = (),
    troubles: Sequence[str] = (),
) -> RunAnswer:
    """The answer to a run: what fails it comes first, then what cannot be told, then the rest.

    Among equals, the order is that of the run's own flow::

                        fails the run                     cannot be told     else
        1. cells        failed, by cause; troubles        -                  passed, with or without bounds
        2. numerics     changed, if numerics count        -                  changed, not changed
           (of first    -                                 changed            equal, rounding)
           updates
        3. figures      missing, worse, what else counts  no score tested    no worse
        4. gains        (with the figures, if they count) -                  too good

    Args:
        records: of the run, finished or not.
        judged: the gate's judgements; empty without a gate.
        kinds: of figures that fail a run.
        baseline: the name of the run that was compared with.
        before: its records, which tell what differs.
        troubles: what else makes the run fail, as "1 other test failed".
    """
    question = Question.of(records, judged, kinds, baseline, before)
    return _ordered([*_of_first_updates(question), _of_cells(question, troubles), *question.statements()], question.bad)


def gate_answer(
    judged: Sequence[Judgement],
    kinds: Sequence[str] = FAILED_BY,
    *,
    baseline: str = "the baseline",
    before: Sequence[Record] = (),
    after: Sequence[Record] = (),
) -> RunAnswer:
    """The same of the gate's judgements alone, whatever became of the cells' own bounds and audits."""
    question = Question.of(after, judged, kinds, baseline, before)
    return _ordered([*_of_first_updates(question), *question.statements()], question.bad)


def _ordered(statements: list[Statement], failing: Sequence[Judgement]) -> RunAnswer:
    """The gravest statement is the answer, with its cause and way on; the sentences of all others follow."""
    order = (State.FAILED, State.CANNOT_TELL)
    statements.sort(key=lambda one: order.index(one.state) if one.state in order else len(order))
    first, *others = statements
    passed = first.state is State.PASSED
    if passed:  # what is to be done comes after what it is about
        others.sort(key=lambda one: not one.way_on)
    return RunAnswer(
        state=first.state,
        answer=f"Passed: {first.sentence[0].lower()}{first.sentence[1:]}" if passed else first.sentence,
        cause=first.cause,
        way_on=first.way_on or (others[0].way_on if passed and others else ""),
        more=tuple(one.sentence for one in others),
        failing=failing,
    )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A run that is asked about, and the gate's judgements on it: arguments of `answer_of`, cells in the study's order."""

    records: Sequence[Record]
    judged: Sequence[Judgement]
    kinds: Sequence[str]
    baseline: str
    before: Sequence[Record] = ()

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        judged: Sequence[Judgement],
        kinds: Sequence[str],
        baseline: str,
        before: Sequence[Record],
    ) -> "Question":
        """The same whatever the order of records and judgements: a file and a session have them in different ones."""
        by_place, judged_by_place = sorted(records, key=_place), sorted(judged, key=_place)
        return cls(records=by_place, judged=judged_by_place, kinds=kinds, baseline=baseline, before=before)

    @cached_property
    def bad(self) -> list[Judgement]:
        """The judgements that fail the run."""
        return failing(self.judged, self.kinds)

    @cached_property
    def outcome(self) -> Outcome:
        """What the judgements say of the whole run."""
        return outcome(self.judged, self.kinds)

    @property
    def profile(self) -> str:
        """Of the run, or of its baseline where it has no cell."""
        return next((record.profile for record in (*self.records, *self.before)), "")

    def statements(self) -> Iterator[Statement]:
        """What the gate says, in the order of the run's flow."""
        if self.judged:
            yield from (*_of_numerics(self), *_of_figures(self), *_of_gains(self))

    def way_on_from(self, cell: str, kinds: Sequence[str]) -> str:
        """What finds the cause of a change in a cell."""
        return next_steps.about_change(cell, kinds, self.before, self.records)


def _place(one: Record | Judgement) -> tuple[tuple[int, str], ...]:
    return study_place(one.cell)


# Cells


def _of_cells(question: Question, troubles: Sequence[str]) -> Statement:
    records = question.records
    cells, failures = len(cells_of(records)), failures_of(records)
    total = count(cells, "cell")
    numbers = [len(failure.cells) for failure in failures]
    counts = [f"{number}" if index else out_of(number, cells, "cell") for index, number in enumerate(numbers)]
    if failures or troubles:
        why, next_step = _about(failures[0].causes[0], failures[0].records, question) if failures else ("", "")
        failed = [f"{number} {failure.name}" for number, failure in zip(counts, failures, strict=True)]
        sentence = f"Failed: {', '.join([*failed, *troubles])}."
        return Statement(state=State.FAILED, sentence=sentence, cause=why, way_on=next_step)
    if not records:
        return Statement(state=State.EMPTY, sentence="Nothing to show: this run holds no cell that was run.")
    if all(record.status == "reported" for record in records):
        published = f"Reported: {count(len(cells_of(records)), 'result')} as published; nothing was run here."
        return Statement(state=State.REPORTED, sentence=published)
    begun = [record for record in records if record.first_updates]
    if begun:
        return Statement(state=State.BEGUN, sentence=_of_begun(begun, [one for one in records if not one.first_updates]))
    all_of = "The one cell" if cells == 1 else f"All {total}"
    return Statement(state=State.PASSED, sentence=f"{all_of} {_bounds(records)} {_audits(records)}.")


def _about(cause: str, bad: Sequence[Record], question: Question) -> tuple[str, str]:
    """What the first of these cells says of it, and what helps. Changed numerics are why a score is below its bound."""
    if cause == BOUND and (change := _change_in({record.cell for record in bad}, question)):
        return change
    if cause.startswith(AUDIT):
        return _as_in(bad, cause), next_steps.about_audit(cause.removeprefix(AUDIT), bad)
    if cause in (KILLED, NOT_RUN, UNFINISHED):
        return _as_in(bad, cause), next_steps.RUN_THE_REST
    next_step = next_steps.about_bound(bad, gated=bool(question.judged)) if cause == BOUND else next_steps.about_cells(bad)
    return _as_in(bad, cause), next_step


def _as_in(bad: Sequence[Record], cause: str) -> str:
    """What the first of some cells missed, and the names of the others."""
    first, missed = bad[0], said_of(bad[0], cause)
    others = list(dict.fromkeys(record.cell for record in bad if record.cell != first.cell))
    return f"{missed}; likewise {some(others)}" if others else missed


def _change_in(cells: Container[str], question: Question) -> tuple[str, str] | None:
    """The first stage at which numerics of these cells changed, and what finds it; None where they did not."""
    changed = [j for j in question.judged if j.quantity in FLOWS and j.verdict is Verdict.CHANGED and j.cell in cells]
    if not changed:
        return None
    sample, stage, where = _first_stage(changed)
    name = FLOWS[sample.quantity][0]
    return f"{name[0].lower()}{name[1:]} changed, first at {_at(stage, where)}", question.way_on_from(sample.cell, ["numerics"])


def _of_begun(begun: Sequence[Record], others: Sequence[Record]) -> str:
    """How far cells came that made only their first updates, and the others beside them."""
    counts = " or ".join(f"{number}" for number in sorted({record.first_updates or 0 for record in begun}))
    early = len(cells_of(begun))
    sound = all(audit.passed for record in begun for audit in record.audits)
    audits = "passed every audit that can look so early" if sound else "audits that do not count here object"
    their = "its" if early == 1 else "their"
    own = f"{count(early, 'cell')} made only {their} first {counts} updates, without scores, and {audits}"
    to_end = f"; {count(len(cells_of(others)), 'cell')} {_bounds(others)} {_audits(others)}" if others else ""
    return f"{own}{to_end}."


def _bounds(records: Sequence[Record]) -> str:
    bounded = [bool(record.bounds) for record in records]
    if all(bounded):
        return "reached every bound"
    return "reached every bound there is" if any(bounded) else "ran to the end, without bounds,"


def _audits(records: Sequence[Record]) -> str:
    objecting = [record for record in records if not all(audit.passed for audit in record.audits)]
    if objecting:
        names = dict.fromkeys(audit.name for record in objecting for audit in record.audits if not audit.passed)
        return f"but audits that do not count here object in {count(len(cells_of(objecting)), 'cell')} ({some(list(names))})"
    return "and passed every audit" if all(record.audits for record in records) else "but not every cell was audited"


# Judgements


def _of_first_updates(question: Question) -> Iterator[Statement]:
    """What the first updates say of cells that made only these, and scores of those that trained on."""
    numerics = [j for j in question.judged if j.quantity == "numerics"]
    begun, others = ([j for j in numerics if bool(j.first_updates) is early] for early in (True, False))
    if not begun:
        return
    total, updates = count(len(numerics), "cell"), max(j.first_updates or 0 for j in begun)
    counts = _counted(begun, SAME_NUMERICS) or "none equal"
    told = f"{counts} by {'its' if len(begun) == 1 else 'their'} first {updates} updates"
    if others:
        own = [j for j in question.judged if j.cell in {other.cell for other in others}]
        unlike = sum(j.verdict is Verdict.NOT_COMPARABLE for j in others)
        parts = [(len(others) - unlike, "changed"), (unlike, "could not be compared")]
        why = " and ".join(f"{number} {reason}" for number, reason in parts if number)
        told += f"; {why} and trained to the end: {outcome(own, question.kinds)}"
    doubtful = doubtful_beginnings(begun)
    if any(j not in question.bad for j in doubtful):  # the others fail the run by themselves
        cells = [j.cell for j in doubtful]
        what = f"{_counted(doubtful, DOUBTFUL_NUMERICS)} ({some(cells)}), without scores"
        sentence = f"Cannot tell whether the run is worse than {question.baseline}: {total}, {told}; {what}."
        scored = any(record.finished for record in question.before)
        next_step = next_steps.about_beginnings(cells) if scored else next_steps.TRAIN_BOTH
        yield Statement(state=State.CANNOT_TELL, sentence=sentence, way_on=next_step)
    else:
        yield Statement(state=State.BEGUN, sentence=f"{total}: {told}.")


def _counted(judged: Sequence[Judgement], verdicts: Iterable[Verdict]) -> str:
    """How many have each of these verdicts, as "25 equal, 1 rounding"."""
    counts = [(sum(j.verdict is verdict for j in judged), verdict) for verdict in verdicts]
    return ", ".join(f"{number} {verdict}" for number, verdict in counts if number)


def _of_numerics(question: Question) -> Iterator[Statement]:
    """Whether numerics changed, in how many cells, and at which stage of the flow first."""
    own = [j for j in question.judged if j.quantity == "numerics"]
    name, _ = FLOWS["numerics"]
    changed = [j for j in own if j.verdict is Verdict.CHANGED]
    counts = "numerics" in question.kinds
    if changed:
        sample, stage, where = _first_stage(changed)
        next_step = question.way_on_from(sample.cell, ["numerics"]) or next_steps.LOOK_HERE
        head = f"{name[1:]} changed in {out_of(len(changed), len(own), 'cell')}"
        if counts:
            sentence, cause = f"Failed: {name[0].lower()}{head}.", f"first at {_at(stage, where)}"
            yield Statement(state=State.FAILED, sentence=sentence, cause=cause, way_on=next_step)
        else:
            why = "scores have not been judged" if doubtful_beginnings(changed) else "that does not count here"
            sentence = f"{name[0]}{head}, first at {_at(stage, where)}; {why}."
            yield Statement(state=State.PASSED, sentence=sentence, way_on=next_step)
    elif counts:
        yield _of_unchanged(own, name, question)


def _first_stage(changed: Sequence[Judgement]) -> tuple[Judgement, str, str]:
    """Of changed numerics: a cell of the first stage of the flow, the stage, and where it changed, in words."""
    _, flow = FLOWS[changed[0].quantity]
    stages = [j.detail.partition(": ")[0] for j in changed]
    first = min(stages, key=lambda stage: flow.index(stage) if stage in flow else len(flow))
    sample = changed[stages.index(first)]
    where = f"{count(stages.count(first), 'cell')}, as in {sample.cell}: {sample.detail.partition(': ')[2]}"
    return sample, first, where


def _at(stage: str, where: str) -> str:
    return f"the stage {stage} ({where})"


def _of_unchanged(own: Sequence[Judgement], name: str, question: Question) -> Statement:
    unlike = [j for j in own if j.verdict is Verdict.NOT_COMPARABLE]
    doubt = f"; {count(len(unlike), 'cell')} cannot be compared ({unlike[0].detail})" if unlike else ""
    cannot_tell = question.outcome is Outcome.CANNOT_TELL and len(unlike) == len(own)
    return Statement(
        state=State.CANNOT_TELL if cannot_tell else State.PASSED,
        sentence=f"{name} did not change in {out_of(len(own) - len(unlike), len(own), 'cell')}{doubt}.",
        way_on=next_steps.UNLIKE if cannot_tell else "",
    )


def _of_figures(question: Question) -> Iterator[Statement]:
    """What is worse or missing of the figures that count, numerics aside; or whether that can be told."""
    judged, kinds, baseline = question.judged, question.kinds, question.baseline
    others = [kind for kind in figures_of(kinds) if kind != "numerics"]
    figures = [j for j in question.bad if j.quantity not in FLOWS]
    if figures:
        cause, next_step = _why_worse(figures, question)
        sentence = f"Failed against {baseline}: {_groups(figures)}."
        yield Statement(state=State.FAILED, sentence=sentence, cause=cause, way_on=next_step)
    elif not any(j.quantity == j.main_score for j in judged):
        return  # no score was taken
    elif (others or (CANNOT_TELL in kinds and undecided(judged))) and question.outcome is Outcome.CANNOT_TELL:
        untested = not undecided(judged)
        yield Statement(
            state=State.CANNOT_TELL,
            sentence=f"Cannot tell whether the run is worse than {baseline}.",
            cause=_doubt(judged, others),
            way_on=next_steps.UNLIKE if untested else next_steps.SEVERAL_SEEDS,
        )
    elif others:
        doubts = [j for j in judged if j.verdict is Verdict.CANNOT_TELL and j.decides and j.kind in others]
        doubt = f", though the gate cannot tell for {count(len(doubts), 'main score')}" if doubts else ""
        sentence = f"By {joined(others)} no worse than {baseline}{doubt}."
        yield Statement(state=State.PASSED, sentence=sentence, way_on=next_steps.SEVERAL_SEEDS if doubts else "")


def _groups(figures: Sequence[Judgement]) -> str:
    """Judgements by verdict, with their cells."""
    groups: dict[Verdict, list[Judgement]] = {}
    for judgement in sorted(figures, key=lambda j: GRAVEST_FIRST.index(j.verdict)):
        groups.setdefault(judgement.verdict, []).append(judgement)
    return ", ".join(f"{_in(group)} {verdict} ({_list_of_cells(group)})" for verdict, group in groups.items())


def _why_worse(figures: Sequence[Judgement], question: Question) -> tuple[str, str]:
    """Why figures are worse, and what helps: numerics of these cells changed; or the evidence of the gravest."""
    if change := _change_in({j.cell for j in figures}, question):
        return change[0], change[1] or next_steps.about_worse(figures, question.before, question.records)
    if missing := [j for j in figures if j.verdict is Verdict.MISSING]:
        cells = [judgement.cell for judgement in missing]
        return f"{cells[0]} is {missing[0].detail}", next_steps.about_missing(cells, question.profile)
    gravest = min(figures, key=lambda j: (GRAVEST_FIRST.index(j.verdict), j.kind != "quality", -abs(j.effect or 0.0)))
    of_cell = [gravest, *(j for j in figures if j.cell == gravest.cell)]
    next_step = next_steps.about_worse(of_cell, question.before, question.records)
    return evidence_of(gravest), next_steps.SUSPECT if gravest.verdict is Verdict.TOO_GOOD else next_step


def _doubt(judged: Sequence[Judgement], kinds: Sequence[str]) -> str:
    """Why nobody can tell."""
    doubtful = undecided(judged)
    if not doubtful:
        return f"nothing of {joined(kinds)} could be compared"
    if all(j.p is None for j in judged if j.quantity == j.main_score):
        return f"no main score could be tested ({doubtful[0].cell} {doubtful[0].quantity}: {doubtful[0].detail})"
    return f"{_in(doubtful)} cannot be told ({_list_of_cells(doubtful)})"


def _of_gains(question: Question) -> Iterator[Statement]:
    """What is too good to be believed; where that counts, it stands among what fails."""
    suspect = [j for j in question.judged if j.verdict is Verdict.TOO_GOOD and j not in question.bad]
    if suspect:
        sentence = f"Too good in {_in(suspect)} ({_list_of_cells(suspect)}): {next_steps.SUSPECT}."
        yield Statement(state=State.PASSED, sentence=sentence)


def _in(judged: Sequence[Judgement]) -> str:
    return count(len({judgement.cell for judgement in judged}), "cell")


def _list_of_cells(judged: Sequence[Judgement]) -> str:
    return some(list(dict.fromkeys(j.cell if j.quantity == "cell" else f"{j.cell} {j.quantity}" for j in judged)))
