"""The verdict on a run, as data: what failed or changed, in which cells, where first, by how much, and what to run next.

`run_verdict` reckons it once. Terminal, step summary, JUnit, annotations and page print it (`tunegrid.report.summary`).
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.gate.judgements import CANNOT_TELL, COUNTED, FAILED_BY, KINDS, Judgement, Outcome, Verdict, describe, tally
from tunegrid.grid.cells import study_place
from tunegrid.grid.more_tasks import marker_words
from tunegrid.grid.recipes import CONFIRMING
from tunegrid.machine import PACKAGES
from tunegrid.record import Record
from tunegrid.runs.status import AUDIT, find_failures, unconfirmed_misses
from tunegrid.words import count, count_text, phrase, some

UNLIKE = "compare runs of the same cells, seeds, rows and recipes, on one machine"
NEVER_FAILING = ("rss_peak_gib",)  # a process's resident set depends on the cells that it ran before
FIRST_UPDATES = "--first-updates"
# Options that make the cells of a run what they are.
CARRIED = ("--ask", "--grid", "--data-root", "--checkpoint-root", "--device", "--set", "--ranks", FIRST_UPDATES)

# Which judgements count


def parse_kinds(text: str) -> tuple[str, ...]:
    """What fails a run, divided by commas; raises InputError for a name that is none."""
    kinds = tuple(text.split(","))
    if names := [kind for kind in kinds if kind not in COUNTED]:
        raise InputError(f"unknown kind of figure {names[0]!r}: expected some of {','.join(COUNTED)}")
    return kinds


def find_worse(judged: Iterable[Judgement], kinds: Sequence[str]) -> list[Judgement]:
    """What of these kinds is worse or of numerics changed, and every missing cell."""
    kinds_by = {Verdict.MISSING: KINDS, Verdict.WORSE: kinds, Verdict.CHANGED: [kind for kind in kinds if kind == "numerics"]}
    return [j for j in judged if j.kind in kinds_by.get(j.verdict, ()) and j.quantity not in NEVER_FAILING]


def open_scores(judged: Iterable[Judgement]) -> list[Judgement]:
    """The main scores that cannot be told."""
    return [j for j in judged if j.quantity == j.main_score and j.verdict is Verdict.CANNOT_TELL]


def changed_updates(judged: Iterable[Judgement]) -> list[Judgement]:
    """First updates that are not the baseline's, or could not be compared, of cells that took no score."""
    doubts = (Verdict.CHANGED, Verdict.NOT_COMPARABLE)
    return [j for j in judged if j.kind == "numerics" and j.first_updates and j.verdict in doubts]


def outcome(judged: Sequence[Judgement], kinds: Sequence[str]) -> Outcome:
    """What the judgements say of the whole run."""
    if find_worse(judged, kinds):
        return Outcome.WORSE
    untested_cells = {j.cell for j in open_scores(judged) if j.p is None}
    scored_cells = {j.cell for j in judged if j.quantity == j.main_score}
    silent = (Verdict.NOT_COMPARABLE, Verdict.NEW)
    doubts = (
        changed_updates(judged),
        CANNOT_TELL in kinds and open_scores(judged),
        "quality" in kinds and scored_cells and scored_cells == untested_cells,  # no main score could be tested
        any(kind in KINDS for kind in kinds)  # that count, and nothing of them could be compared
        and all(j.verdict in silent or (j.verdict is Verdict.CANNOT_TELL and j.p is None) for j in judged if j.kind in kinds),
    )
    return Outcome.CANNOT_TELL if any(doubts) else Outcome.NO_WORSE


# Where numerics changed


class Change(NamedTuple):
    """The first change of numerics."""

    cells: Sequence[str] = ()  # in which; none: nothing changed; the first is the sample
    stage: str = ""
    what: str = ""  # changed there, and by how much
    cause: str = ""  # the same as the cause of something else


def first_change(judged: Iterable[Judgement]) -> Change:
    """Where numerics of these cells changed first; if modules have a class and a library in common, by these: one place."""
    if not (changes := [j for j in judged if j.kind == "numerics" and j.verdict is Verdict.CHANGED]):
        return Change()
    from tunegrid.gate.numerics import STAGES  # which brings pandas

    stage = next((stage for stage in STAGES if any(j.stage == stage for j in changes)), changes[0].stage)
    firsts = [j for j in changes if j.stage == stage]
    classes = Counter(place for j in firsts for place in dict.fromkeys(module[1:] for module in j.modules))
    place, cells = next(iter(classes.most_common(1)), (("", ""), 0))
    firsts = [j for j in firsts if any(module[1:] == place for module in j.modules)] if cells > 1 else firsts
    what = firsts[0].detail.removeprefix(f"{stage}: ").partition("; with ")[0]
    for name, kind, library in firsts[0].modules if cells > 1 else ():
        common = f"{kind} of {library}"  # of two siblings, too
        what = what.replace(f"{name} ({kind}, {library})", common).replace(f"{common} and {common}", common)
    return Change([j.cell for j in firsts], stage, what, f"numerics changed, first at the stage {stage}: {what}")


# What to run next


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """The arguments of `run_verdict`; makes commands that a shell takes as they are, with the options of the run."""

    records: Sequence[Record]
    judged: Sequence[Judgement]
    kinds: Sequence[str]
    baseline: str
    before: Sequence[Record]
    command: str
    files: tuple[str, str]

    @property
    def words(self) -> list[str]:
        """The command's; none if a shell could not read it: somebody wrote it into a file."""
        try:
            return shlex.split(self.command)
        except ValueError:
            return []

    def options(self, *, whole: bool = False) -> list[str]:
        """Those of the command that its cells need to run as they did, or to their ends (`whole`); each is one word."""
        words = []
        for word, value in pairwise([*self.words, "-"]):
            name, has_value, _ = word.partition("=")
            if name in CARRIED and not (whole and name == FIRST_UPDATES):
                words.append(word if has_value or value.startswith("-") else f"{word}={value}")
        return words

    def run(self, cells: Sequence[str], *more: str, whole: bool = False) -> str:
        """Runs cells as this run did; `whole`: to their ends."""
        first = next((record for record in (*self.records, *self.before) if record.cell in cells), None)
        words = ["pytest"] if Path.cwd().is_relative_to(ROOT) else ["tunegrid", "run"]
        words += ["-m", marker_words(first.cell, first.profile) if first else "quick", "--cells", ",".join(cells)]
        return f"`{shlex.join([*words, *self.options(whole=whole), *more])}`"

    def rerun(self, record: Record) -> str:
        """Runs a cell that failed alone, in one process, or what was left out."""
        if record.status in ("killed", "not run", "unfinished"):
            retry = shlex.join([*self.words, *([] if "--resume" in self.words else ["--resume"])])
            command = f"`{retry}`" if self.words[:1] in (["pytest"], ["tunegrid"]) else "the same command with --resume"
            return f"{command} runs what is left"
        seed = ["--seeds", f"{record.seeds.seed}"] if record.seeds.seed else []
        return f"{self.run([record.cell], '-n', '0', *seed)} runs one cell alone"

    def more_seeds(self, cells: Sequence[str]) -> str:
        """What tells changes from noise."""
        return f"{self.run(cells, '--seeds', '0-4', whole=True)}, for both runs, would decide"

    def look(self) -> str:
        """Shows all evidence."""
        return f"`{shlex.join(['tunegrid', 'gate', *self.files, '--numerics'])}` prints the evidence for each verdict"

    def bisection(self, cells: Sequence[str], kinds: Sequence[str]) -> str:
        """Finds the release that changed the first of these cells; empty if no library has a later release than before."""
        old, new = ([record for record in side if record.cell in cells[:1]] for side in (self.before, self.records))
        before, after = (side[0].versions if side else {} for side in (old, new))
        packages = [name for name in PACKAGES if is_later(before.get(name), after.get(name))]
        if not packages:
            return ""
        good, bad = (f"{packages[0]}=={versions[packages[0]]}" for versions in (before, after))
        basis = ",".join(kind for kind in KINDS if kind in kinds)
        words = ["tunegrid", "bisect", "--good", good, "--bad", bad, "--cells", cells[0], "--by", basis]
        marker = marker_words(cells[0], new[0].profile)
        seeds = sorted({one.seeds.seed or 0 for one in new if one.seeds.confirms is None})
        options = [*(["-m", marker] if marker != "quick" else []), *self.options(whole=True)]
        options += ["--seeds", ",".join(map(str, seeds))] if seeds != [0] else []
        also = f" ({', '.join(packages[1:])} changed, too)" if packages[1:] else ""
        return f"`{shlex.join([*words, *(['--', *options] if options else [])])}` finds the release{also}"


def is_later(before: str | None, after: str | None) -> bool:
    """Whether two versions are releases, and the second one is later: another build of one release is not."""
    try:
        old, new = Version(before or ""), Version(after or "")
    except InvalidVersion:
        return False
    return Version(old.public) < Version(new.public) and not (old.is_devrelease or new.is_devrelease)


class State(StrEnum):
    """What a verdict comes to."""

    FAILED = "failed"
    CANNOT_TELL = "cannot tell"
    BEGUN = "begun"
    PASSED = "passed"
    EMPTY = "empty"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a run shows."""

    state: State = State.PASSED  # what it makes of the run
    sentence: str  # what, by how much, in which cells; with a small letter and without a stop
    cause: str = ""  # why, as far as it is known
    next_step: str = ""  # what to run, or what would decide it


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """What is to be said of a run."""

    findings: Sequence[Finding]  # the gravest first: it decides
    next_step: str = ""  # empty if nothing is to be done
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
        clause = self.findings[0].sentence
        return f"{self.state.capitalize()}: {clause}." if self.state in (State.FAILED, State.PASSED) else sentence(clause)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer, its cause or else the next finding, what to run next, and the other findings."""
        more = [sentence(one.sentence) for one in self.findings[1:]]
        return answer_lines(self.answer, self.findings[0].cause, self.next_step, more)


def answer_lines(answer: str, cause: str, next_step: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """An answer in its lines."""
    second, rest = ([f"Cause: {cause}."], more) if cause else (more[:1], more[1:])
    return (answer, *second, *([f"Next: {next_step}."] if next_step else []), *rest)


def sentence(clause: str) -> str:
    """With a capital and a stop; a name of a file or a cell stays as it is."""
    return f"{clause[0].upper() if clause.partition(' ')[0].isalpha() else clause[0]}{clause[1:]}."


def run_verdict(
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
    records, before = (
        sorted(group, key=lambda r: (study_place(r.cell), r.seeds.confirms is not None)) for group in (records, before)
    )
    judged = sorted(judged, key=lambda one: study_place(one.cell))
    run = JudgedRun(records=records, judged=judged, kinds=kinds, baseline=baseline, before=before, command=command, files=files)
    cells, numerics = [*(() if troubles is None else _cell_findings(run, troubles))], [*_numerics_findings(run)]
    parts = (cells, numerics) if first_change(judged).cells else (numerics, cells)  # if only rounding differs, it comes first
    findings = [*parts[0], *parts[1], *(_figure_findings(run) if judged else ())]
    # What was missed or worse at one seed and not at the one that confirms it: over time, what fails now and then.
    if texts := [*unconfirmed_misses(records, before), *(describe(j) for j in judged if j.confirmed == "no")]:
        findings.append(Finding(sentence="; ".join(texts)))
    order = (State.FAILED, State.CANNOT_TELL)
    first, *others = sorted(findings, key=lambda one: order.index(one.state) if one.state in order else len(order))
    has_passed = first.state is State.PASSED
    if has_passed:  # what is to be done comes after what it is about
        others.sort(key=lambda one: not one.next_step)
    next_step = first.next_step or (others[0].next_step if has_passed and others else "")
    return RunVerdict(findings=[first, *others], next_step=next_step, failing=find_worse(judged, kinds))


def _cell_findings(run: JudgedRun, troubles: Sequence[str]) -> Iterator[Finding]:
    """What cells come to by themselves: what failed, by cause, or that nothing did."""
    failures, total = find_failures(run.records), len({(record.profile, record.cell) for record in run.records})
    for failure in failures[:1]:
        first, name = failure.records[0], failure.causes[0]
        change = first_change(j for j in run.judged if j.cell in failure.cells)
        audit = f"; reports/evidence/audits.md explains {name.removeprefix(AUDIT)}" if AUDIT in name else ""
        next_step = run.bisection(change.cells[:1], ["numerics"]) or f"{run.rerun(first)}{audit}"
        yield Finding(state=State.FAILED, sentence=failure.headline(total), cause=change.cause, next_step=next_step)
    if others := [*(failure.title for failure in failures[1:]), *troubles]:
        yield Finding(state=State.FAILED, sentence=f"{'also ' if failures else ''}{'; '.join(others)}")
    elif all(record.status == "reported" for record in run.records):
        yield Finding(state=State.EMPTY, sentence="nothing to show: this run holds no cell that ran")
    elif not failures:
        has_begun = any(record.first_updates for record in run.records)
        yield Finding(state=State.BEGUN if has_begun else State.PASSED, sentence=_soundness(run.records, total))


def _soundness(records: Sequence[Record], total: int) -> str:
    """That nothing objects to any cell; what no bound or audit vouched for is not called passed."""
    updates = {record.cell: record.first_updates for record in records if record.first_updates}
    bounds, cells = [bool(record.bounds) for record in records], count_text(total, total, "cell")
    end = "reached every bound" if all(bounds) else f"ran to the end, {'not all with' if any(bounds) else 'without'} bounds,"
    if doubts := sum(record.status == "unconfirmed" for record in records):
        end += f", {doubts} only in a second training,"
    if updates:
        cells, whose = count_text(len(updates), total, "cell"), "its" if len(updates) == 1 else "their"
        end = f"made {whose} first {max(updates.values())} updates, without scores,"
    objecting = dict.fromkeys(finding.name for record in records for finding in record.audits if not finding.passed)
    audits = "and passed every audit" if all(record.audits for record in records) else "but not every cell was audited"
    audits = f"but audits that do not count here failed ({some(list(objecting))})" if objecting else audits
    return f"{cells} {end} {audits}"


def _numerics_findings(run: JudgedRun) -> Iterator[Finding]:
    """Whether numerics changed, in how many cells, and what first; or that all differences are small."""
    figures, counts = [j for j in run.judged if j.kind == "numerics"], "numerics" in run.kinds
    changes, rounding = ([j.cell for j in figures if j.verdict is one] for one in (Verdict.CHANGED, Verdict.ROUNDING))
    if run.judged and list(run.records) == list(run.before):
        yield Finding(sentence=f"this run was compared with itself: {run.baseline} holds its records")
    if changes:
        change = first_change(figures)
        here = f", in {len(change.cells)} of them" if len(change.cells) < len(changes) else ""
        place = f"numerics of {count_text(len(changes), len(figures), 'cell')} changed, first at the stage {change.stage}{here}"
        libraries = next(j.detail for j in figures if j.cell == change.cells[0]).partition("; with ")[2]
        note = "" if counts else "; scores have not been judged" if changed_updates(figures) else "; numerics do not count here"
        hint = "in a checkout of a library, bisect --repo finds the commit" if libraries else "no library is known to differ"
        yield Finding(
            state=State.FAILED if counts else State.PASSED,
            sentence=f"{change.what} ({place}, as in {change.cells[0]}){note}",
            cause=f"the runs differ in {some(libraries.split('; '))}" if libraries else "",
            next_step=run.bisection(change.cells, ["numerics"]) or f"{run.look()}; {hint}",
        )
    elif early := max((j.first_updates or 0 for j in figures), default=0):
        span = f"by {'its' if len(figures) == 1 else 'their'} first {early} updates"
        yield Finding(state=State.BEGUN, sentence=f"{count(len(figures), 'cell')}: {tally(j.verdict for j in figures)} {span}")
    elif rounding and all(j.verdict is not Verdict.NOT_COMPARABLE for j in figures):
        others = ", the others not at all" if len(rounding) < len(figures) else ""
        differ = f"differ{'s' if len(rounding) == 1 else ''} from {run.baseline} by rounding alone{others}"
        yield Finding(sentence=f"{count_text(len(rounding), len(figures), 'cell')} {differ}")


def _figure_findings(run: JudgedRun) -> Iterator[Finding]:
    """What is worse or missing; why nothing can be told; or that nothing is worse."""
    faults, judged, others = find_worse(run.judged, run.kinds), run.judged, [kind for kind in run.kinds if kind in KINDS[1:]]
    if figures := [j for j in faults if j.kind != "numerics"]:
        yield _worse_finding(run, figures)
    elif not faults and outcome(judged, run.kinds) is Outcome.CANNOT_TELL:
        yield _doubt_finding(run)
    elif not faults and others and any(j.quantity == j.main_score for j in judged):
        cells = [j.cell for j in open_scores(judged)]
        doubt = f", though {count(len(cells), 'main score')} cannot be decided ({some(cells)})" if cells else ""
        no_worse = f"no worse than {run.baseline} by {phrase(others)}{doubt}"
        yield Finding(sentence=no_worse, next_step=run.more_seeds(cells) if cells else "")
    numerics = [j for j in judged if j.kind == "numerics" and "numerics" in run.kinds and not j.first_updates]
    if gaps := [j for j in numerics if j.verdict is Verdict.NOT_COMPARABLE]:
        reasons, subject = some(list(dict.fromkeys(j.detail for j in gaps))), count_text(len(gaps), len(numerics), "cell")
        yield Finding(sentence=f"numerics of {subject} could not be compared ({reasons})", next_step=UNLIKE)


def _doubt_finding(run: JudgedRun) -> Finding:
    """Why it cannot be told whether the run is worse, and what would tell."""
    doubts, early = open_scores(run.judged), changed_updates(run.judged)
    cells = [j.cell for j in early or doubts]
    if early:
        cause = f"{tally(j.verdict for j in early)} in first updates, without scores ({some(cells)})"
        next_step = f"{run.run(cells, whole=True)} trains {'it' if len(cells) == 1 else 'them'} to the end"
    elif doubts and ("quality" in run.kinds or CANNOT_TELL in run.kinds):
        cause = f"{count(len(doubts), 'main score')} cannot be decided ({some(list(map(describe, doubts)), 1)})"
        next_step = run.more_seeds(cells)
    else:
        cause, next_step = f"no figure of {phrase(run.kinds)} could be compared", UNLIKE
    answer = f"cannot tell whether the run is worse than {run.baseline}"
    return Finding(state=State.CANNOT_TELL, sentence=answer, cause=cause, next_step=next_step)


def _worse_finding(run: JudgedRun, figures: Sequence[Judgement]) -> Finding:
    """What is missing or worse, most of all; changed numerics of these cells are its cause."""
    ranking = sorted(figures, key=lambda j: (j.verdict is Verdict.WORSE, j.kind != "quality", -abs(j.effect or 0.0)))
    gravest, parts = ranking[0], []
    for verdict in dict.fromkeys(j.verdict for j in ranking):
        group = [j for j in ranking if j.verdict is verdict]
        cells = list(dict.fromkeys(j.cell for j in group))
        most = f"{'most of all ' if cells[1:] else ''}{describe(group[0]).partition(' (')[0]}"
        parts.append(f"{count(len(cells), 'cell')} {verdict}: {some(cells) if verdict is Verdict.MISSING else most}")
    change = first_change(j for j in run.judged if j.cell in {one.cell for one in figures})
    kinds = ["numerics"] if change.cells else [j.kind for j in figures if j.cell == gravest.cell]
    next_step = run.bisection([*change.cells, gravest.cell], kinds)
    if gravest.verdict is Verdict.MISSING:
        next_step = f"{run.run([j.cell for j in ranking if j.verdict is Verdict.MISSING])} runs the missing cells"
    elif gravest.kind in ("memory", "speed"):
        next_step = next_step or "benchmarks/guides/memory-and-speed.md explains these figures"
    elif gravest.confirmed == "open":
        seed = next(one.seeds.seed or 0 for one in run.records if one.cell == gravest.cell) + CONFIRMING
        next_step = f"{run.run([gravest.cell], f'--seeds={seed}')} confirms or refutes it"
    else:  # rows that both runs hold show what changed
        page = f"`{shlex.join(['tunegrid', 'page', *reversed(run.files), '-o', 'page.html'])}` shows the test rows that changed"
        next_step = next_step or (run.look() if "no rows are available" in gravest.detail else page)
    headline = f"{'; '.join(parts)}, against {run.baseline}"
    return Finding(state=State.FAILED, sentence=headline, cause=change.cause, next_step=next_step)
