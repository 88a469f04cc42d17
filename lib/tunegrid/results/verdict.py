"""The verdict on a run, as data: what failed or changed, in which cells, where first, by how much, and what to run next.

`verdict_of` reckons it once. Terminal, step summary, JUnit, annotations and page print it (`tunegrid.results.summary`).
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tunegrid.errors import InputError
from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.results.judgements import (
    CANNOT_TELL,
    COUNTED,
    DOUBTFUL_NUMERICS,
    FAILED_BY,
    GRAVEST_FIRST,
    KINDS,
    SAME_NUMERICS,
    Judgement,
    Outcome,
    Verdict,
    evidence_of,
)
from tunegrid.results.next_steps import Asked
from tunegrid.results.numerics import STAGES
from tunegrid.results.report import count, joined, out_of, some
from tunegrid.results.status import AUDIT, Failure, failures_of

# Which judgements count

UNLIKE = "compare runs of the same cells, seeds, rows and recipes, on one machine"
COSTS = "benchmarks/guides/memory-and-speed.md says what the figures hold"
GUIDES = {"instruments": "benchmarks/guides/instruments.md says what the figures hold", "memory": COSTS, "speed": COSTS}
NEVER_FAILING = ("rss_peak_gib",)  # a process's resident set depends on the cells that it ran before


def kinds_of(text: str) -> tuple[str, ...]:
    """What fails a run, divided by commas; raises InputError for a name that is none."""
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in COUNTED:
            raise InputError(f"unknown kind of figure {kind!r}: expected some of {','.join(COUNTED)}")
    return kinds


def failing(judged: Iterable[Judgement], kinds: Sequence[str]) -> list[Judgement]:
    """What of these kinds is worse or of numerics changed, and every missing cell."""
    return [
        j
        for j in judged
        if j.verdict is Verdict.MISSING
        or (j.verdict is Verdict.WORSE and j.kind in kinds and j.quantity not in NEVER_FAILING)
        or (j.verdict is Verdict.CHANGED and j.kind == "numerics" and "numerics" in kinds)
    ]


def undecided(judged: Iterable[Judgement]) -> list[Judgement]:
    """The main scores that cannot be told."""
    return [j for j in judged if j.quantity == j.main_score and j.verdict is Verdict.CANNOT_TELL]


def unscored(judged: Iterable[Judgement]) -> list[Judgement]:
    """First updates that are not the baseline's, or could not be compared, of cells that took no score."""
    return [j for j in judged if j.kind == "numerics" and j.first_updates and j.verdict in DOUBTFUL_NUMERICS]


def moved_by_rounding(judged: Sequence[Judgement]) -> list[Judgement]:
    """The main scores that cannot be told though numerics differ by rounding alone: no finding, and more seeds would tell."""
    cells = {j.cell for j in judged if j.kind == "numerics" and j.verdict is Verdict.ROUNDING}
    return [j for j in undecided(judged) if j.cell in cells and j.effect is not None and j.smallest is not None]


def outcome(judged: Sequence[Judgement], kinds: Sequence[str]) -> Outcome:
    """What the judgements say of the whole run.

    It cannot be told if no main score could be tested, or nothing of the kinds that count could be compared; with
    `cannot-tell` among these, if any main score cannot be told.
    """
    if failing(judged, kinds):
        return Outcome.WORSE
    untested = [j.verdict is Verdict.CANNOT_TELL and j.p is None for j in judged if j.quantity == j.main_score]
    silent = [
        j.verdict in (Verdict.NOT_COMPARABLE, Verdict.NEW) or (j.verdict is Verdict.CANNOT_TELL and j.p is None)
        for j in judged
        if j.kind in kinds
    ]
    doubts = (
        unscored(judged),
        CANNOT_TELL in kinds and undecided(judged),
        "quality" in kinds and untested and all(untested),
        any(kind in KINDS for kind in kinds) and all(silent),
    )
    return Outcome.CANNOT_TELL if any(doubts) else Outcome.NO_WORSE


# Where numerics changed


class Change(NamedTuple):
    """The first change of numerics: its stage, what changed there by how much, and in which cells; the first is the sample."""

    stage: str
    what: str
    cells: Sequence[str]

    @property
    def cause(self) -> str:
        """As the cause of something else."""
        return f"numerics changed, first at the stage {self.stage}: {self.what}" if self.cells else ""


UNCHANGED = Change("", "", ())


def first_change(judged: Iterable[Judgement]) -> Change:
    """Where numerics of these cells changed first, if they did.

    If modules that are named have a class and a library in common, these are named: five layers are one place.
    """
    changed = [j for j in judged if j.kind == "numerics" and j.verdict is Verdict.CHANGED]
    if not changed:
        return UNCHANGED
    flow = list(STAGES)
    stage = min((j.stage for j in changed), key=lambda name: flow.index(name) if name in flow else len(flow))
    own = [j for j in changed if j.stage == stage]
    classes = Counter(place for j in own for place in dict.fromkeys(module[1:] for module in j.modules))
    place, cells = next(iter(classes.most_common(1)), (("", ""), 0))
    own = [j for j in own if any(module[1:] == place for module in j.modules)] if cells > 1 else own
    what = own[0].detail.removeprefix(f"{stage}: ").partition("; with ")[0]
    for name, kind, library in own[0].modules if cells > 1 else ():
        once = f"{kind} of {library}"  # of two siblings, too
        what = what.replace(f"{name} ({kind}, {library})", once).replace(f"{once} and {once}", once)
    return Change(stage, what, [j.cell for j in own])


# The verdict


class State(StrEnum):
    """What a verdict comes to."""

    FAILED = "failed"
    CANNOT_TELL = "cannot tell"
    BEGUN = "begun"
    PASSED = "passed"
    REPORTED = "reported"
    EMPTY = "empty"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a run shows."""

    state: State  # what it makes of the run
    sentence: str  # what, by how much, in which cells; with a small letter and without a stop
    cells: Sequence[str] = ()  # that it is about
    stage: str = ""  # the first at which their numerics changed
    cause: str = ""  # why, as far as it is known
    next_step: str = ""  # what to run, or what would decide it


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """What is to be said of a run."""

    findings: Sequence[Finding]  # the gravest first: it decides
    next_step: str = ""  # empty if nothing is to be done
    failures: Sequence[Failure] = ()  # why cells failed by themselves
    failing: Sequence[Judgement] = ()  # what fails the run

    @property
    def state(self) -> State:
        """Of the gravest finding."""
        return self.findings[0].state

    @property
    def exit_code(self) -> int:
        """0, 1 or 6."""
        return {State.FAILED: 1, State.CANNOT_TELL: 6}.get(self.state, 0)

    @property
    def answer(self) -> str:
        """The first sentence."""
        shown = self.state in (State.FAILED, State.PASSED, State.REPORTED)
        return f"{self.state.capitalize()}: {self.findings[0].sentence}." if shown else sentence(self.findings[0].sentence)

    @property
    def cause(self) -> str:
        """Why it is so; empty if nothing is known."""
        return self.findings[0].cause

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer, its cause or else the next finding, what to run next, and the other findings."""
        return in_lines(self.answer, self.cause, self.next_step, [sentence(one.sentence) for one in self.findings[1:]])


def in_lines(answer: str, cause: str, next_step: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """An answer in its lines."""
    second, rest = ([f"Cause: {cause}."], more) if cause else (more[:1], more[1:])
    return (answer, *second, *([f"Next: {next_step}."] if next_step else []), *rest)


def sentence(clause: str) -> str:
    """With a capital and a stop; a name of a file or a cell stays as it is."""
    return f"{clause[0].upper() if clause.partition(' ')[0].isalpha() else clause[0]}{clause[1:]}."


def verdict_of(
    records: Iterable[Record],  # finished or not
    judged: Iterable[Judgement] = (),  # by the gate, if there was one
    kinds: Sequence[str] = FAILED_BY,  # what fails a run
    *,
    baseline: str = "the baseline",  # the name of the run that it was compared with
    before: Iterable[Record] = (),  # that run's
    troubles: Sequence[str] | None = (),  # what else fails it; None leaves out what cells are by themselves
    command: str = "",  # that started the run
    files: tuple[str, str] = ("OLD.json", "NEW.json"),
) -> RunVerdict:
    """The verdict on a run: what fails it comes first, then what cannot be told, then the rest."""
    records, before = (sorted(each, key=lambda one: study_place(one.cell)) for each in (records, before))
    judged = sorted(judged, key=lambda one: study_place(one.cell))
    run = Asked(records=records, judged=judged, kinds=kinds, baseline=baseline, before=before, command=command, files=files)
    failures = [] if troubles is None else failures_of(records)
    cells, numerics = [*(() if troubles is None else _of_cells(run, failures, troubles))], [*_of_numerics(run)]
    changed = any(one.stage for one in numerics)  # if only rounding differs, that is said first
    findings = [*(cells if changed else numerics), *(numerics if changed else cells), *(_of_figures(run) if judged else ())]
    order = (State.FAILED, State.CANNOT_TELL)
    first, *others = sorted(findings, key=lambda one: order.index(one.state) if one.state in order else len(order))
    passed = first.state is State.PASSED
    if passed:  # what is to be done comes after what it is about
        others.sort(key=lambda one: not one.next_step)
    next_step = first.next_step or (others[0].next_step if passed and others else "")
    return RunVerdict(findings=[first, *others], next_step=next_step, failures=failures, failing=failing(judged, kinds))


def _of_cells(run: Asked, failures: Sequence[Failure], troubles: Sequence[str]) -> Iterator[Finding]:
    """What cells come to by themselves: what failed, by cause, or that nothing did."""
    records, total = run.records, len({(record.profile, record.cell) for record in run.records})
    for failure in failures[:1]:
        first, change = failure.records[0], first_change(j for j in run.judged if j.cell in failure.cells)
        next_step = run.bisection(change.cells[0], ["numerics"]) if change.cells else ""
        name = failure.causes[0].removeprefix(AUDIT)
        looks = f"; reports/evidence/audits.md says what {name} looks at" if name != failure.causes[0] else ""
        if first.status in ("killed", "not run", "unfinished"):
            resumed = shlex.join([*run.words, *([] if "--resume" in run.words else ["--resume"])])
            again = f"`{resumed}`" if run.words[:1] == ["pytest"] else "the command that ran them, with --resume,"
            next_step = f"{again} runs what is left"
        yield Finding(
            state=State.FAILED,
            sentence=failure.headline(total),
            cells=failure.cells,
            stage=change.stage,
            cause=change.cause,
            next_step=next_step or f"{run.alone(first)}{looks}",
        )
    if also := [*(failure.title for failure in failures[1:]), *troubles]:
        yield Finding(state=State.FAILED, sentence=f"{'also ' if failures else ''}{'; '.join(also)}")
    elif not records:
        yield Finding(state=State.EMPTY, sentence="nothing to show: this run holds no cell that was run")
    elif all(record.status == "reported" for record in records):
        yield Finding(state=State.REPORTED, sentence=f"{count(total, 'result')} as published; nothing was run here")
    elif not failures:
        begun = any(record.first_updates for record in records)
        yield Finding(state=State.BEGUN if begun else State.PASSED, sentence=_soundness(records, total))


def _soundness(records: Sequence[Record], total: int) -> str:
    """That nothing objects to any cell; what no bound or audit vouched for is not called passed."""
    begun = {record.cell: record.first_updates for record in records if record.first_updates}
    bounds, cells = [bool(record.bounds) for record in records], "the one cell" if total == 1 else f"all {total} cells"
    ended = "reached every bound" if all(bounds) else f"ran to the end, {'not all with' if any(bounds) else 'without'} bounds,"
    if begun:
        cells, whose = out_of(len(begun), total, "cell"), "its" if len(begun) == 1 else "their"
        ended = f"came to {whose} first {max(begun.values())} updates, without scores,"
    objecting = dict.fromkeys(finding.name for record in records for finding in record.audits if not finding.passed)
    audited = "and passed every audit" if all(record.audits for record in records) else "but not every cell was audited"
    audited = f"but audits that do not count here object ({some(list(objecting))})" if objecting else audited
    return f"{cells} {ended} {audited}"


def _of_numerics(run: Asked) -> Iterator[Finding]:
    """Whether numerics changed, in how many cells, and what first; or that all differences are small."""
    own, counts = [j for j in run.judged if j.kind == "numerics"], "numerics" in run.kinds
    changed, rounding = ([j.cell for j in own if j.verdict is one] for one in (Verdict.CHANGED, Verdict.ROUNDING))
    if run.judged and list(run.records) == list(run.before):
        yield Finding(state=State.PASSED, sentence=f"this run was compared with itself: {run.baseline} holds its records")
    if change := first_change(own) if changed else None:
        here = f", in {len(change.cells)} of them" if len(change.cells) < len(changed) else ""
        where = f"numerics of {out_of(len(changed), len(own), 'cell')} changed, first at the stage {change.stage}{here}"
        libraries = next(j.detail for j in own if j.cell == change.cells[0]).partition("; with ")[2]
        why = "" if counts else "; scores have not been judged" if unscored(own) else "; that does not count here"
        look = f"{run.gate('--numerics')} prints what each verdict rests on; no library is known to differ"
        yield Finding(
            state=State.FAILED if counts else State.PASSED,
            sentence=f"{change.what} ({where}, as in {change.cells[0]}){why}",
            cells=changed,
            stage=change.stage,
            cause=f"the runs differ by {some(libraries.split('; '))}" if libraries else "",
            next_step=run.bisection(change.cells[0], ["numerics"]) or look,
        )
    elif early := max((j.first_updates or 0 for j in own), default=0):
        by = f"by {'its' if len(own) == 1 else 'their'} first {early} updates"
        yield Finding(state=State.BEGUN, sentence=f"{count(len(own), 'cell')}: {counted(own)} {by}")
    elif rounding and all(j.verdict in SAME_NUMERICS for j in own):
        others = ", the others not at all" if len(rounding) < len(own) else ""
        differ = f"differ{'s' if len(rounding) == 1 else ''} from {run.baseline} by rounding alone{others}"
        yield Finding(state=State.PASSED, sentence=f"{out_of(len(rounding), len(own), 'cell')} {differ}", cells=rounding)


def _of_figures(run: Asked) -> Iterator[Finding]:
    """What is worse or missing; why nothing can be told; or that nothing is worse."""
    bad, judged, others = failing(run.judged, run.kinds), run.judged, [kind for kind in run.kinds if kind in KINDS[1:]]
    if figures := [j for j in bad if j.kind != "numerics"]:
        yield _of_worse(run, figures)
    doubts, rounding = undecided(judged), moved_by_rounding(judged)
    silent = [j for j in judged if j.kind in run.kinds and j.verdict is Verdict.NOT_COMPARABLE and not j.first_updates]
    numerics = [j for j in silent if j.kind == "numerics"]
    reasons = f" ({some(list(dict.fromkeys(j.detail for j in silent)))})" if silent else ""
    cells = [j.cell for j in doubts if j not in rounding]
    if not bad and outcome(judged, run.kinds) is Outcome.CANNOT_TELL:
        early, why, next_step = unscored(judged), f"nothing of {joined(run.kinds)} could be compared{reasons}", UNLIKE
        if early:
            cells = [j.cell for j in early]
            why = f"{counted(early)} in first updates, without scores ({some(cells)})"
            next_step = f"{run.run(cells, whole=True)} trains {'it' if len(cells) == 1 else 'them'} to the end"
        elif doubts and ("quality" in run.kinds or CANNOT_TELL in run.kinds):
            told = some([evidence_of(j) for j in doubts if j in rounding or j.cell in cells], 1)
            why = _moved(rounding) if not cells else f"{count(len(doubts), 'main score')} cannot be told ({told})"
            next_step = run.more_seeds([j.cell for j in doubts])
        else:
            cells, numerics = list(dict.fromkeys(j.cell for j in silent)), []
        sentence = f"cannot tell whether the run is worse than {run.baseline}"
        yield Finding(state=State.CANNOT_TELL, sentence=sentence, cells=cells, cause=why, next_step=next_step)
    elif not bad and others and any(j.quantity == j.main_score for j in judged):
        doubt = f", though {count(len(cells), 'main score')} cannot be told ({some(cells)})" if cells else ""
        sentence = f"by {joined(others)} no worse than {run.baseline}{doubt}"
        yield Finding(state=State.PASSED, sentence=sentence, cells=cells, next_step=run.more_seeds(cells) if cells else "")
        if rounding:
            moved = [j.cell for j in rounding]
            yield Finding(state=State.PASSED, sentence=_moved(rounding), cells=moved, next_step=run.more_seeds(moved))
    if numerics:
        own = out_of(len(numerics), sum(j.kind == "numerics" for j in judged), "cell")
        lost = f"numerics of {own} could not be compared ({some(list(dict.fromkeys(j.detail for j in numerics)))})"
        yield Finding(state=State.PASSED, sentence=lost, cells=[j.cell for j in numerics], next_step=UNLIKE)


def _moved(judged: Sequence[Judgement]) -> str:
    """What rounding does to main scores that cannot be told."""
    most, sees = max(abs(j.effect or 0.0) for j in judged), max(j.smallest or 0.0 for j in judged)
    moves = f"rounding moves {'its score' if len(judged) == 1 else 'their scores'} by up to {most:.1f} points"
    drops = f"a drop of less than {sees:.1f} points cannot be told from it"
    return f"{count(len(judged), 'cell')}: {moves}; {drops} ({some([j.cell for j in judged])})"


def _of_worse(run: Asked, figures: Sequence[Judgement]) -> Finding:
    """What is missing or worse, most of all; changed numerics of these cells are its cause."""
    ordered = sorted(figures, key=lambda j: (GRAVEST_FIRST.index(j.verdict), j.kind != "quality", -abs(j.effect or 0.0)))
    gravest, parts = ordered[0], []
    for verdict in dict.fromkeys(j.verdict for j in ordered):
        own = [j for j in ordered if j.verdict is verdict]
        cells = list(dict.fromkeys(j.cell for j in own))
        most = f"{'most of all ' if cells[1:] else ''}{evidence_of(own[0]).partition(' (')[0]}"
        parts.append(f"{count(len(cells), 'cell')} {verdict}: {some(cells) if verdict is Verdict.MISSING else most}")
    change = first_change(j for j in run.judged if j.cell in {one.cell for one in figures})
    missing = [j.cell for j in ordered if j.verdict is Verdict.MISSING]
    cause = change.cause or ("" if missing or gravest.kind in ("memory", "speed") else gravest.detail)
    kinds = ["numerics"] if change.cells else [j.kind for j in figures if j.cell == gravest.cell]
    if missing:
        next_step = f"{run.run(missing)} runs what is missing"
    else:
        flips = f"{run.gate('--show-flips', '5')} lists the test rows that changed"
        next_step = run.bisection([*change.cells, gravest.cell][0], kinds) or GUIDES.get(gravest.kind, flips)
    sentence, cells = f"{'; '.join(parts)}, against {run.baseline}", [j.cell for j in ordered]
    return Finding(state=State.FAILED, sentence=sentence, cells=cells, stage=change.stage, cause=cause, next_step=next_step)


def counted(judged: Iterable[Judgement]) -> str:
    """How many have each verdict, as "25 equal, 1 rounding"."""
    counts = Counter(j.verdict for j in judged)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in GRAVEST_FIRST if counts[verdict])
