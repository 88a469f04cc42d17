"""Builds the verdict on a run: statements on failures, changes and unknowns, most severe first.

`run_verdict` makes the verdict once. The terminal, step summary, JUnit file, annotations and page
all print this verdict (`tunegrid.report.summary`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tunegrid.gate.judgements import (
    CANNOT_TELL,
    CHANGED,
    DEFAULT_KINDS,
    KINDS,
    Judgement,
    Verdict,
    describe,
    find_worse,
    main_scores,
    tally,
    uncompared_kinds,
    was_compared,
)
from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.report.next_steps import UNLIKE, NextSteps, suite_file
from tunegrid.runs.known_faults import find_known_fault
from tunegrid.runs.status import AUDIT, find_failed_cells, unconfirmed_misses
from tunegrid.words import count, count_text, phrase, some


class Rank(StrEnum):
    """Ranks of statements, most severe first; a run has the rank of its most severe statement."""

    FAILED = "failed"
    CHANGED = "changed"
    CANNOT_TELL = "cannot tell"
    UNJUDGED = "too short to judge"
    TOO_SHORT = "partly too short to judge"
    KNOWN = "known fault"
    OPEN = "no regression found"
    BEGUN = "begun"
    PASSED = "passed"
    EMPTY = "empty"
    NOTE = "note"

    @property
    def exit_code(self) -> int:
        """The exit code: 0, 1 or 6, since pytest itself uses 2 to 5."""
        if self is Rank.FAILED:
            return 1
        return 6 if self in (Rank.CHANGED, Rank.CANNOT_TELL, Rank.UNJUDGED) else 0


RANKS = tuple(Rank)
AUDITS_PAGE = "reports/evidence/audits.md"
MEMORY_PAGE = "benchmarks/guides/memory-and-speed.md"
# The opening of an answer, by rank. With other ranks, the clause suffices.
OPENINGS = {
    Rank.FAILED: "Failed: ",
    Rank.CHANGED: "Changed: ",
    Rank.UNJUDGED: "Too short to judge: ",
    Rank.TOO_SHORT: "Partly too short to judge: ",
    Rank.KNOWN: "Known fault: ",
    Rank.OPEN: "No regression found; ",
    Rank.PASSED: "Passed: ",
}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement about a run."""

    rank: Rank = Rank.NOTE
    clause: str  # what, by how much, in which cells; no capital, no full stop
    cause: str = ""  # the reason, if known
    next_step: str = ""  # a command to run, or what would settle the question

    @property
    def sentence(self) -> str:
        """The clause, capitalized and with a full stop; a leading file or cell is left as is."""
        is_word = self.clause.partition(" ")[0].isalpha()
        first = self.clause[0].upper() if is_word else self.clause[0]
        return f"{first}{self.clause[1:]}."


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """The verdict on a run."""

    statements: Sequence[Statement]  # most severe first; the first decides
    next_step: str = ""  # empty if there is nothing to do
    failing: Sequence[Judgement] = ()  # the judgements that fail the run

    @property
    def rank(self) -> Rank:
        """The rank of the most severe statement."""
        return self.statements[0].rank

    @property
    def exit_code(self) -> int:
        """The exit code of the most severe statement: 0, 1 or 6."""
        return self.rank.exit_code

    @property
    def answer(self) -> str:
        """The first sentence of the verdict."""
        opening = OPENINGS.get(self.rank)
        first = self.statements[0]
        return f"{opening}{first.clause}." if opening else first.sentence

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer, its cause (or else the second statement), the next step, and the rest."""
        more = [statement.sentence for statement in self.statements[1:]]
        return answer_lines(self.answer, self.statements[0].cause, self.next_step, more)

    @property
    def reasons(self) -> list[str]:
        """The cause of the answer, if known, and the sentences of all other statements."""
        cause = self.statements[0].cause
        reasons = [f"Cause: {cause}."] if cause else []
        return reasons + [statement.sentence for statement in self.statements[1:]]


def answer_lines(
    answer: str, cause: str, next_step: str, more: Sequence[str] = ()
) -> tuple[str, ...]:
    """The answer, its cause (or else the first of `more`), the next step, and the rest."""
    details = list(more)
    lines = [answer]
    if cause:
        lines.append(f"Cause: {cause}.")
    elif details:
        lines.append(details.pop(0))
    if next_step:
        lines.append(f"Next: {next_step}.")
    return (*lines, *details)


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """A run's records and the gate's judgements on it, both in the study's order."""

    records: Sequence[Record]
    judged: Sequence[Judgement]
    kinds: Sequence[str]
    baseline: str
    before: Sequence[Record]
    steps: NextSteps

    @property
    def cell_count(self) -> int:
        """The number of cells in the run."""
        return len({(record.profile, record.cell) for record in self.records})

    @property
    def numerics(self) -> list[Judgement]:
        """The judgements on numerics."""
        return [judgement for judgement in self.judged if judgement.kind == "numerics"]

    @property
    def early_numerics(self) -> list[Judgement]:
        """The judgements on numerics that are based on first updates alone."""
        return [judgement for judgement in self.numerics if judgement.first_updates]


def run_verdict(
    records: Iterable[Record],
    judged: Iterable[Judgement] = (),
    kinds: Sequence[str] = DEFAULT_KINDS,
    *,
    baseline: str = "the baseline",
    before: Iterable[Record] = (),
    other_failures: Sequence[str] = (),
    uncompared: str = "",
    judges_cells: bool = True,
    command: str = "",
    given: str = "",
    files: tuple[str, str] = ("OLD.json", "NEW.json"),
    runner: Sequence[str] = (),
    upgrade: Sequence[str] = (),
) -> RunVerdict:
    """Builds the verdict on a run.

    Args:
        records: the run's records, finished or not.
        judged: the gate's judgements, if there was a gate.
        kinds: the kinds of judgement that the exit code depends on.
        baseline: the name of the run that this run was compared with.
        before: the records of the baseline.
        other_failures: clauses on anything else that fails the run.
        uncompared: a clause on why the run could not be compared with the requested baseline.
        judges_cells: whether the cells' own failures and passes count.
        command: the command that started the run.
        given: the command that the user typed, if it differs from `command`.
        files: the files of the older run and of this one.
        runner: the start of a command that runs cells in the run's environment, if that is not the
            current one.
        upgrade: for `tunegrid upgrade`, the command that runs both sides again.
    """
    records = sorted(records, key=record_place)
    before = sorted(before, key=record_place)
    judged = sorted(judged, key=lambda judgement: study_place(judgement.cell))
    steps = NextSteps(
        records=records,
        before=before,
        command=command,
        given=given,
        files=files,
        runner=runner,
        upgrade=upgrade,
    )
    run = JudgedRun(
        records=records,
        judged=judged,
        kinds=kinds,
        baseline=baseline,
        before=before,
        steps=steps,
    )
    statements: list[Statement] = []
    if judges_cells:
        statements += _failed_cells(run, other_failures)
        statements += _known_faults(run)
    statements += _worse_figures(run)
    statements += _changed_figures(run)
    statements += _early_numerics(run)
    statements += _unknown_scores(run)
    if uncompared:
        statements.append(Statement(rank=Rank.CANNOT_TELL, clause=uncompared))
    if judges_cells:
        statements += _sound_cells(run, other_failures)
    statements += _notes(run)
    statements.sort(key=lambda statement: RANKS.index(statement.rank))
    return RunVerdict(
        statements=statements,
        next_step=_next_step(statements),
        failing=find_worse(judged, kinds),
    )


def record_place(record: Record) -> tuple[object, bool]:
    """The sort key of a record: the study's order, with a second training run after the first."""
    return study_place(record.cell), record.seeds.confirms is not None


def _next_step(statements: Sequence[Statement]) -> str:
    """The first next step of any statement; in a failed run, only failures and changes count."""
    failed = statements[0].rank is Rank.FAILED
    for statement in statements:
        if failed and statement.rank not in (Rank.FAILED, Rank.CHANGED):
            break
        if statement.next_step:
            return statement.next_step
    return ""


# Cells, apart from any comparison


def _failed_cells(run: JudgedRun, other_failures: Sequence[str]) -> Iterator[Statement]:
    """Statements on failures: the first in full, the others by title only."""
    failures = find_failed_cells(run.records)
    for failure in failures[:1]:
        first = failure.records[0]
        cause = failure.causes[0]
        change = changed_place(j for j in run.judged if j.cell in failure.cells)
        steps = [run.steps.bisection(change.cells[:1], ["numerics"])]
        if not steps[0]:
            steps.append(run.steps.rerun(first))
            if cause.startswith(AUDIT):
                steps.append(f"{suite_file(AUDITS_PAGE)} explains {cause.removeprefix(AUDIT)}")
        yield Statement(
            rank=Rank.FAILED,
            clause=failure.headline(run.cell_count),
            cause=change.cause,
            next_step="; ".join(filter(None, steps)),
        )
    titles = [failure.title for failure in failures[1:]]
    titles += other_failures
    if titles:
        also = "also " if failures else ""
        yield Statement(rank=Rank.FAILED, clause=f"{also}{'; '.join(titles)}")


def _known_faults(run: JudgedRun) -> Iterator[Statement]:
    """Statements on audits that failed by known faults of libraries.

    If the baseline does not have the fault in these cells, the gate cannot tell what it cost them.
    """
    cells_before = {record.cell for record in run.before if not record.known}
    cells_by_fault: dict[tuple[str, str, str], dict[str, None]] = {}
    for record in run.records:
        for audit, reason in record.known.items():
            fault = find_known_fault(record, audit)
            key = (audit, reason, fault.link if fault else "")
            cells_by_fault.setdefault(key, {})[record.cell] = None
    for (audit, reason, link), cells in cells_by_fault.items():
        number = count_text(len(cells), run.cell_count, "cell")
        clause = f"{number} failed {audit} ({some(list(cells))}; known: {reason})"
        is_new = bool(cells_before & cells.keys())
        if is_new:
            clause += f", which passed in {run.baseline}"
        yield Statement(
            rank=Rank.CANNOT_TELL if is_new else Rank.KNOWN,
            clause=clause,
            cause=f"a fault of the library, {link}" if link else "",
        )


def _sound_cells(run: JudgedRun, other_failures: Sequence[str]) -> Iterator[Statement]:
    """Statements on cells that passed or were too short to judge, unless anything failed.

    If no cell ran, a statement says so.
    """
    if all(record.status == "reported" for record in run.records):
        yield Statement(rank=Rank.EMPTY, clause="nothing to show: this run holds no cell that ran")
        return
    if other_failures or find_failed_cells(run.records):
        return
    whole: list[Record] = []
    short: list[Record] = []
    begun: list[Record] = []
    for record in run.records:
        if record.known:
            continue  # another statement says so
        if record.first_updates:
            begun.append(record)
        elif record.is_short:
            short.append(record)
        else:
            whole.append(record)
    if short:
        yield _short_cells(run, short)
    if begun:
        yield Statement(rank=Rank.BEGUN, clause=_soundness(run, begun))
    if whole:
        yield Statement(rank=Rank.PASSED, clause=_soundness(run, whole))


def _short_cells(run: JudgedRun, records: Sequence[Record]) -> Statement:
    """The statement on cells that made too few updates or whose failed audits are excused."""
    cells = {record.cell for record in records}
    updates: dict[str, str] = {}
    for record in records:
        training = record.training
        if training and not record.excused:
            made = f"{record.cell} made {training.updates}"
            updates[record.cell] = f"{made} of its {training.due} planned updates"
    clauses = [_excused_clause(run, records), some([*updates.values()])]
    clause = "; ".join(filter(None, clauses))
    is_judged = len(cells) < run.cell_count or any(map(was_compared, main_scores(run.judged)))
    command = run.steps.run(sorted(cells, key=study_place), whole=True)
    pronoun = "it" if len(cells) == 1 else "them"
    return Statement(
        rank=Rank.TOO_SHORT if is_judged else Rank.UNJUDGED,
        clause=clause,
        next_step=f"{command} runs {pronoun} whole" if command else "",
    )


def _excused_clause(run: JudgedRun, records: Sequence[Record]) -> str:
    """A clause on failed audits that are excused, grouped by cells, with the reasons."""
    cells_by_audit: dict[str, dict[str, None]] = {}
    reasons: dict[str, None] = {}
    for record in records:
        for audit, reason in record.excused.items():
            cells_by_audit.setdefault(audit, {})[record.cell] = None
            reasons[reason] = None
    audits_by_cells: dict[tuple[str, ...], list[str]] = {}
    for audit, cells in cells_by_audit.items():
        audits_by_cells.setdefault(tuple(cells), []).append(audit)
    clauses: list[str] = []
    for group in sorted(audits_by_cells, key=len, reverse=True):
        subject = some(group) if clauses else count_text(len(group), run.cell_count, "cell")
        clauses.append(f"{subject} failed {phrase(audits_by_cells[group])}")
    return f"{'; '.join(clauses)} ({some(list(reasons))})" if clauses else ""


def _soundness(run: JudgedRun, records: Sequence[Record]) -> str:
    """A clause on cells without failures, which also mentions missing bounds and audits."""
    total = run.cell_count
    number = len({(record.profile, record.cell) for record in records})
    cells = count_text(number, total, "cell")
    audits = "and passed every audit"
    if not all(record.audits for record in records):
        audits = "but not every cell was audited"
    updates = {r.cell: r.first_updates for r in records if r.first_updates}
    if updates:
        cells = count_text(len(updates), total, "cell")
        pronoun = "its" if len(updates) == 1 else "their"
        most = max(updates.values())
        return f"{cells} made {pronoun} first {most} updates, without scores, {audits}"
    bounded = [record for record in records if record.bounds]
    end = "ran to the end, without bounds,"
    if run.steps.has_settings:
        end = "ran to the end, without bounds, which do not hold with --set,"
    if len(bounded) == len(records):
        end = "reached every bound"
        lacking = {
            record.main_score for record in records if record.main_score not in record.bounds
        }
        if lacking:
            lack = f"main score {phrase(sorted(lacking))} has none"
            end += f" ({lack}: `tunegrid calibrate` measures it)"
    elif bounded:
        end = "ran to the end, not all with bounds,"
    second = {record.cell for record in records if record.status == "unconfirmed"}
    if second:
        audits += f"; {some(sorted(second))} only in a second training"
    return f"{cells} {end} {audits}"


# Worse figures


def _worse_figures(run: JudgedRun) -> Iterator[Statement]:
    """The statement on missing cells and worse figures, with changed numerics as their cause."""
    figures = [j for j in find_worse(run.judged, run.kinds) if j.kind != "numerics"]
    if not figures:
        return
    figures.sort(key=lambda j: (j.verdict is Verdict.WORSE, j.kind != "quality", -size(j)))
    gravest = figures[0]
    clauses = []
    for verdict in dict.fromkeys(judgement.verdict for judgement in figures):
        group = [judgement for judgement in figures if judgement.verdict is verdict]
        clauses.append(_worse_clause(verdict, group))
    worse_cells = distinct_cells(figures)
    change = changed_place(j for j in run.judged if j.cell in worse_cells)
    yield Statement(
        rank=Rank.FAILED,
        clause=f"{'; '.join(clauses)}, against {run.baseline}",
        cause=change.cause,
        next_step=_worse_step(run, gravest, figures, change),
    )


def distinct_cells(judged: Iterable[Judgement]) -> list[str]:
    """The cells of the judgements, each once."""
    return list(dict.fromkeys(judgement.cell for judgement in judged))


def size(judgement: Judgement) -> float:
    """The absolute size of a figure's change; 0 if unknown."""
    return abs(judgement.effect or 0.0)


def _worse_clause(verdict: Verdict, figures: Sequence[Judgement]) -> str:
    """A clause such as "2 cells worse: most of all bert_sa_lora accuracy -3.91 points"."""
    cells = distinct_cells(figures)
    if verdict is Verdict.MISSING:
        return f"{count(len(cells), 'cell')} {verdict}: {some(cells)}"
    most = describe(figures[0]).partition(" (")[0]
    confirmed = ""
    if figures[0].confirmed == "yes":
        confirmed = ", confirmed by a second training"
    elif figures[0].confirmed == "open":
        confirmed = ", not confirmed yet"
    most_of_all = "most of all " if cells[1:] else ""
    return f"{count(len(cells), 'cell')} {verdict}: {most_of_all}{most}{confirmed}"


def _worse_step(
    run: JudgedRun, gravest: Judgement, figures: Sequence[Judgement], change: "ChangedPlace"
) -> str:
    if gravest.verdict is Verdict.MISSING:
        missing = [judgement.cell for judgement in figures if judgement.verdict is Verdict.MISSING]
        command = run.steps.run(missing)
        return f"{command} runs the missing cells" if command else ""
    kinds = [judgement.kind for judgement in figures if judgement.cell == gravest.cell]
    if change.cells:
        kinds = ["numerics"]
    bisection = run.steps.bisection([*change.cells, gravest.cell], kinds)
    if gravest.kind in ("memory", "speed"):
        return bisection or f"{suite_file(MEMORY_PAGE)} explains these figures"
    if gravest.confirmed == "open":
        return run.steps.confirmation(gravest.cell)
    if bisection:
        return bisection
    if "no rows are available" in gravest.detail:
        return run.steps.evidence()
    return run.steps.changed_rows()


# Changed figures


class ChangedPlace(NamedTuple):
    """The place where numerics changed first."""

    cells: Sequence[str] = ()  # the first serves as the sample; empty if none changed
    stage: str = ""
    what: str = ""  # what changed there, and by how much
    cause: str = ""  # the same, worded as the cause of another change


def changed_place(judged: Iterable[Judgement]) -> ChangedPlace:
    """Finds where numerics first changed, according to `judged`.

    If several cells name modules of one class, the class is named instead of a module.
    """
    changes = [j for j in judged if j.kind == "numerics" and j.verdict is Verdict.CHANGED]
    if not changes:
        return ChangedPlace()
    from tunegrid.gate.numerics import STAGES  # this imports pandas

    stages = {judgement.stage for judgement in changes}
    stage = next((stage for stage in STAGES if stage in stages), changes[0].stage)
    firsts = [judgement for judgement in changes if judgement.stage == stage]
    kind, library, cells = _commonest_class(firsts)
    if cells > 1:
        firsts = [j for j in firsts if (kind, library) in module_classes(j)]
    what = firsts[0].detail.removeprefix(f"{stage}: ").partition("; with ")[0]
    if cells > 1:
        common = f"{kind} of {library}"
        for name, its_kind, its_library in firsts[0].modules:
            what = what.replace(f"{name} ({its_kind}, {its_library})", common)
        what = what.replace(f"{common} and {common}", common)  # if two modules of the class changed
    cause = f"numerics changed, first at the stage {stage}: {what}"
    return ChangedPlace([judgement.cell for judgement in firsts], stage, what, cause)


def module_classes(judgement: Judgement) -> list[tuple[str, str]]:
    """The distinct (class, library) pairs of the modules that changed first."""
    return list(dict.fromkeys((kind, library) for _, kind, library in judgement.modules))


def _commonest_class(judged: Sequence[Judgement]) -> tuple[str, str, int]:
    """The class and library that most judgements name, and the number of these judgements."""
    cells: Counter[tuple[str, str]] = Counter()
    for judgement in judged:
        cells.update(module_classes(judgement))
    for (kind, library), number in cells.most_common(1):
        return kind, library, number
    return "", "", 0


def _changed_figures(run: JudgedRun) -> Iterator[Statement]:
    """Statements on changed numerics and on cells whose tensors hold fewer bytes."""
    changed = [judgement for judgement in run.numerics if judgement.verdict is Verdict.CHANGED]
    if changed:
        yield _changed_numerics(run, changed)
    fewer = [j for j in run.judged if j.kind == "memory" and j.verdict is Verdict.CHANGED]
    if fewer:
        cells = distinct_cells(fewer)
        most = describe(max(fewer, key=size)).partition(" (")[0]
        total = len({judgement.cell for judgement in run.judged})
        yield Statement(
            rank=Rank.CHANGED if {CHANGED, "memory"} & set(run.kinds) else Rank.NOTE,
            clause=f"tensors of {count_text(len(cells), total, 'cell')} hold fewer bytes: {most}",
            next_step=f"{suite_file(MEMORY_PAGE)} explains these figures",
        )


def _changed_numerics(run: JudgedRun, changed: Sequence[Judgement]) -> Statement:
    change = changed_place(changed)
    here = f", in {len(change.cells)} of them" if len(change.cells) < len(changed) else ""
    cells = count_text(len(changed), len(run.numerics), "cell")
    change_place = f"numerics of {cells} changed, first at the stage {change.stage}{here}"
    if "numerics" in run.kinds:
        rank, note = Rank.FAILED, ""
    elif CHANGED in run.kinds:
        rank, note = Rank.CHANGED, _score_note(run)
    else:
        rank, note = Rank.NOTE, "; numerics do not count here"
    sample = next(j for j in changed if j.cell == change.cells[0])
    libraries = sample.detail.partition("; with ")[2].split("; ")
    libraries = [*filter(None, libraries)]
    return Statement(
        rank=rank,
        clause=f"{change.what} ({change_place}, as in {sample.cell}){note}",
        cause=f"the runs differ in {some(libraries)}"
        if libraries
        else "no library is known to differ",
        next_step=_changed_step(run, changed, change, bool(libraries)),
    )


def _score_note(run: JudgedRun) -> str:
    """A clause on the scores of a run whose numerics changed; empty if any score is worse."""
    scores = main_scores(run.judged)
    if not scores:
        return "; scores were not judged"
    if not any(was_compared(score) for score in scores):
        return "; scores could not be compared"
    if any(score.verdict is Verdict.WORSE for score in scores):
        return ""
    note = "; no score is worse"
    for verdict, word in (
        (Verdict.CANNOT_TELL, "undecided"),
        (Verdict.NOT_COMPARABLE, "not compared"),
    ):
        number = len(main_scores(run.judged, verdict))
        if number:
            note += f", {number} of {len(scores)} {word}"
    return note


def _changed_step(
    run: JudgedRun, changed: Sequence[Judgement], change: ChangedPlace, other_libraries: bool
) -> str:
    bisection = run.steps.bisection(change.cells, ["numerics"])
    if bisection:
        return bisection
    if "numerics" not in run.kinds and all(judgement.first_updates for judgement in changed):
        return run.steps.whole_run([judgement.cell for judgement in changed])
    hint = "in a checkout of a library, `tunegrid bisect --repo` finds the commit"
    return "; ".join(filter(None, (run.steps.evidence(), hint if other_libraries else "")))


def _early_numerics(run: JudgedRun) -> Iterator[Statement]:
    """The statement on numerics judged by first updates alone, unless any of them changed."""
    numerics = run.early_numerics
    updates = max((judgement.first_updates or 0 for judgement in numerics), default=0)
    if updates and not any(judgement.verdict is Verdict.CHANGED for judgement in numerics):
        pronoun = "its" if len(numerics) == 1 else "their"
        verdicts = tally(judgement.verdict for judgement in numerics)
        clause = f"{count(len(numerics), 'cell')}: {verdicts} by {pronoun} first {updates} updates"
        yield Statement(rank=Rank.BEGUN, clause=clause)


# Unknowns


def _unknown_scores(run: JudgedRun) -> Iterator[Statement]:
    """Statements on uncompared or undecided scores, or the statement that nothing is worse."""
    if not run.judged:
        return
    counts_quality = bool({"quality", CANNOT_TELL} & set(run.kinds))
    unlike = main_scores(run.judged, Verdict.NOT_COMPARABLE) if counts_quality else []
    undecided = main_scores(run.judged, Verdict.CANNOT_TELL) if counts_quality else []
    if find_worse(run.judged, run.kinds):
        clauses = [_unlike_clause(run, unlike)] if unlike else []
        clauses += _open_clauses(run, undecided)
        yield from (Statement(clause=clause) for clause in clauses)
        return
    if unlike:
        clause = "; ".join([_unlike_clause(run, unlike), *_open_clauses(run, undecided)])
        yield Statement(rank=Rank.CANNOT_TELL, clause=clause, next_step=UNLIKE)
        return
    unknown_answer = _unknown_answer(run, undecided)
    if unknown_answer:
        yield unknown_answer
    else:
        yield from _no_regression(run, undecided)


def _unlike_clause(run: JudgedRun, unlike: Sequence[Judgement]) -> str:
    """A clause on cells whose scores cannot be compared with the baseline's, with the reasons."""
    cells = count_text(len(unlike), len(main_scores(run.judged)), "cell")
    reasons = some(list(dict.fromkeys(score.detail for score in unlike)))
    names = some([score.cell for score in unlike])
    verb = "is" if len(unlike) == 1 else "are"
    return f"{cells} {verb} not comparable with {run.baseline}: {reasons} ({names})"


def _unknown_answer(run: JudgedRun, undecided: Sequence[Judgement]) -> Statement | None:
    """The statement that the gate cannot tell whether the run is worse; None if it can tell."""
    unknown = uncompared_kinds(run.judged, run.kinds)
    early = run.early_numerics
    early_cells = [judgement.cell for judgement in early]
    unlike_early = [j for j in early if j.verdict is Verdict.NOT_COMPARABLE]
    cells = [score.cell for score in undecided]
    if unlike_early:
        number = count_text(len(unlike_early), len(early), "cell")
        names = some([judgement.cell for judgement in unlike_early])
        cause = (
            f"numerics of {number} could not be compared, "
            f"and first updates have no scores ({names})"
        )
        step = run.steps.whole_run(early_cells)
    elif undecided and ("quality" in unknown or CANNOT_TELL in run.kinds):
        first = some([describe(score) for score in undecided], 1)
        cause = f"{count(len(cells), 'main score')} cannot be decided ({first})"
        step = run.steps.more_seeds(cells)
    elif unknown:
        cause = f"no figure of {phrase(unknown)} could be compared{_reasons(run, unknown)}"
        step = run.steps.whole_run(early_cells) if early else UNLIKE
        if unknown == ["instruments"]:
            step = "give both runs the same `--ask`"
    else:
        return None
    clause = f"cannot tell whether the run is worse than {run.baseline}"
    return Statement(rank=Rank.CANNOT_TELL, clause=clause, cause=cause, next_step=step)


def _reasons(run: JudgedRun, kinds: Sequence[str]) -> str:
    """The reasons, in parentheses, why figures of `kinds` were not compared; empty if unknown."""
    details = [j.detail for j in run.judged if j.kind in kinds and j.detail and not was_compared(j)]
    return f" ({some(list(dict.fromkeys(details)))})" if details else ""


def is_equal_or_rounding(judgement: Judgement) -> bool:
    """Checks whether numerics are equal or differ only by rounding."""
    return judgement.verdict in (Verdict.EQUAL, Verdict.ROUNDING)


def _no_regression(run: JudgedRun, undecided: Sequence[Judgement]) -> Iterator[Statement]:
    """Statements that say that no figure is worse, and what remains undecided."""
    compared = []
    for kind in KINDS[1:]:
        if kind in run.kinds and any(was_compared(j) for j in run.judged if j.kind == kind):
            compared.append(kind)
    if not compared:
        return
    clauses = _open_clauses(run, undecided)
    new = [judgement.cell for judgement in run.judged if judgement.verdict is Verdict.NEW]
    if new:
        clauses.append(f"{count(len(new), 'cell')} not in {run.baseline} ({some(new)})")
    no_worse = f"no worse than {run.baseline} by {phrase(compared)}"
    if "quality" not in compared:
        yield Statement(clause="; ".join([no_worse, *clauses]))
        return
    if clauses:
        step = run.steps.more_seeds([score.cell for score in undecided]) if undecided else ""
        yield Statement(rank=Rank.OPEN, clause="; ".join(clauses), next_step=step)
    if not undecided:
        yield Statement(clause=no_worse)


def _open_clauses(run: JudgedRun, undecided: Sequence[Judgement]) -> list[str]:
    """Clauses on undecided scores and on figures that were not compared."""
    total = count(len(main_scores(run.judged)), "score")
    tested = [score for score in undecided if was_compared(score)]
    untested = [score for score in undecided if not was_compared(score)]
    refuted = [score for score in tested if score.confirmed == "no"]
    clauses = []
    if refuted:
        drops = some([f"{score.cell} {score.effect:+.1f}" for score in refuted])
        clauses.append(
            f"{count(len(refuted), 'drop')} not confirmed by a second training ({drops})"
        )
    if tested:
        clauses.append(f"{len(tested)} of {total} undecided ({_drop_range(tested)})")
    if untested:
        reason = untested[0].detail
        clauses.append(f"{len(untested)} of {total} not tested ({reason})")
    kinds = [kind for kind in ("speed", "instruments") if kind in run.kinds]
    if CHANGED in run.kinds or "numerics" in run.kinds:
        kinds.insert(0, "numerics")
    for kind in kinds:
        clauses += _uncompared_figures(run, kind)
    return clauses


def _drop_range(undecided: Sequence[Judgement]) -> str:
    """A clause on detectable drops, such as "they would show drops of 2 to 6 points"."""
    drops = [score.min_drop or 0.0 for score in undecided]
    ends = []
    for drop in (min(drops), max(drops)):
        digits = 1 if drop < 2 else 0
        ends.append(f"{drop:.{digits}f}")
    pronoun = "it" if len(undecided) == 1 else "they"
    return f"{pronoun} would show drops of {' to '.join(dict.fromkeys(ends))} points"


def _uncompared_figures(run: JudgedRun, kind: str) -> Iterator[str]:
    """Yields a clause on the cells, if any, in which no figure of a kind could be compared."""
    figures = [judgement for judgement in run.judged if judgement.kind == kind]
    compared = distinct_cells(filter(was_compared, figures))
    unlike = [judgement for judgement in figures if judgement.cell not in compared]
    if unlike:
        cells = len(distinct_cells(unlike))
        total = count_text(cells, len(distinct_cells(figures)), "cell")
        reasons = some(list(dict.fromkeys(judgement.detail for judgement in unlike)))
        yield f"{kind} of {total} not compared ({reasons})"


# Notes


def _notes(run: JudgedRun) -> Iterator[Statement]:
    """Statements that do not affect the outcome."""
    if run.judged and list(run.records) == list(run.before):
        yield Statement(clause="both runs hold the same records: a run was compared with itself")
    yield from _rounding(run)
    worse = main_scores(run.judged, Verdict.WORSE)
    if worse and "quality" not in run.kinds:
        first = some([describe(score).partition(" (")[0] for score in worse])
        clause = f"{count(len(worse), 'main score')} worse, which does not count here: {first}"
        yield Statement(clause=clause)
    if run.judged:
        yield from _missed_baseline(run)
    # Intermittent failures only become visible over time.
    texts = [*unconfirmed_misses(run.records, run.before)]
    texts += [describe(judgement) for judgement in run.judged if judgement.confirmed == "no"]
    if texts:
        yield Statement(clause="; ".join(texts))


def _missed_baseline(run: JudgedRun) -> Iterator[Statement]:
    """A statement on cells that missed a bound in the baseline, since this can hide a low score."""
    cells = {record.cell for record in run.records}
    missed = dict[str, None]()
    for record in run.before:
        if record.cell in cells and record.status == "missed":
            missed[record.cell] = None
    if missed:
        clause = f"{count(len(missed), 'cell')} missed a bound ({some(list(missed))})"
        yield Statement(clause=f"in {run.baseline}, {clause}: give a baseline that passed")


def _rounding(run: JudgedRun) -> Iterator[Statement]:
    """A statement that numerics differ only by rounding, if any differ and none changed."""
    rounding = [j for j in run.numerics if j.verdict is Verdict.ROUNDING and not j.first_updates]
    if not rounding or not all(is_equal_or_rounding(judgement) for judgement in run.numerics):
        return
    others = ", the others not at all" if len(rounding) < len(run.numerics) else ""
    verb = "differs" if len(rounding) == 1 else "differ"
    cells = count_text(len(rounding), len(run.numerics), "cell")
    yield Statement(clause=f"{cells} {verb} from {run.baseline} by rounding alone{others}")
