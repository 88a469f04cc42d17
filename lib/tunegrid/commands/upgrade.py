"""Can I upgrade? `tunegrid upgrade 'transformers==5.25'` runs the cells before and after, and says what changed.

What pip would change here for the upgrade is installed into an environment of its own, which takes all else from this one. A
package without a version means its newest; `peft@../peft` is a checkout as it lies on the disk. "Before" is this environment,
or with --from another one, or a saved run. The same command goes on where it was stopped. The exit code is that of a gate: 1
where a score or a memory figure is worse, 6 where that cannot be told, else 0.
"""

import argparse
import errno
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from tunegrid.commands import speed
from tunegrid.commands.cli import refuse
from tunegrid.commands.environments import MAKES_ROOM, Suite, first_updates, output_of, suite
from tunegrid.commands.requirements import Wanted
from tunegrid.commands.sides import (
    RUNS,
    NoCellRuns,
    Question,
    Side,
    changed,
    changes,
    check_alike,
    recorded_changes,
    run,
    shipped_baseline,
    side_of,
    unfinished,
    with_cells_and_seeds,
)
from tunegrid.errors import InputError
from tunegrid.page.render import write
from tunegrid.page.view import page_of, read_page_run
from tunegrid.record import Record
from tunegrid.results.files import is_cell, load, read_list, save
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import SAME_NUMERICS, Judgement, Outcome, Verdict, by_cell
from tunegrid.results.report import NAMED, Section, text
from tunegrid.results.status import failures_of
from tunegrid.results.summary import gate_section, summary, write_step_summary
from tunegrid.results.verdict import COUNTED, FAILED_BY, RunVerdict, failing, kinds_of, verdict_of
from tunegrid.terminal import say

# What cells are called in the sentence, in its order; those from the third on are named.
WORDS = ("equal", "rounding", "not comparable", "new", "changed", "failed", "worse", "missing")
UNNAMED = WORDS[:2]


def sentence(changes: str, judged: Sequence[Judgement], kinds: Sequence[str], failed: Mapping[str, str] | None = None) -> str:
    """As "peft 0.21.2 -> 0.22.0: 26 cells equal, 1 changed (gpt2_qa_lora: backward: lora_B at update 1; f1 -2.1, worse)".

    Args:
        changes: what was upgraded.
        judged: by the gate.
        kinds: of figures that count.
        failed: why cells failed by themselves, as by an audit.
    """
    failed = failed or {}
    if not judged:
        reasons = "; ".join(dict.fromkeys(failed.values()))
        return f"{changes}: no cell finishes" + (f" ({reasons})" if reasons else "")
    groups: dict[str, list[str]] = {word: [] for word in WORDS}
    for cell, own in by_cell(judged).items():
        word, reason = _cell(own, failing(own, kinds), failed.get(cell, ""))
        groups[word].append(f"{cell}: {reason}" if reason else cell)
    parts = [_group(word, cells) for word, cells in groups.items() if cells]
    noun = "cell" if len(next(cells for cells in groups.values() if cells)) == 1 else "cells"
    count, _, others = ", ".join(parts).partition(" ")
    return f"{changes}: {count} {noun} {others}"


def failures(before: Iterable[Record], after: Iterable[Record]) -> dict[str, str]:
    """Why cells failed by themselves after the upgrade, by cell; of the same failure it says that it was there before."""
    known, now = _names(before), _names(after)
    return {cell: name + (", as before" if name == known.get(cell) else "") for cell, name in now.items()}


def _names(records: Iterable[Record]) -> dict[str, str]:
    names: dict[str, list[str]] = {}
    for failure in failures_of(records):
        for cell in failure.cells:
            names.setdefault(cell, []).append(failure.name)
    return {cell: " and ".join(own) for cell, own in names.items()}


def _group(word: str, cells: Sequence[str]) -> str:
    if word in UNNAMED:
        return f"{len(cells)} {word}"
    more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return f"{len(cells)} {word} ({', '.join(cells[:NAMED])}{more})"


def _cell(judged: Sequence[Judgement], bad: Sequence[Judgement], failed: str) -> tuple[str, str]:
    """The word for a cell, and what there is to say of it."""
    whole = next((j for j in judged if j.quantity == "cell"), None)
    if whole:
        return str(whole.verdict), failed
    arithmetic = next((j for j in judged if j.kind == "numerics"), None)
    word = str(arithmetic.verdict) if arithmetic else str(Verdict.NOT_COMPARABLE)
    if word in UNNAMED and not bad:
        return ("failed", failed) if failed else (word, "")
    figures = [j for j in judged if j.kind != "numerics" and (j in bad or (j.quantity == j.main_score and j.effect))]
    reason = (
        arithmetic.detail.partition("; with ")[0].removesuffix(", forward equal") if arithmetic and word not in UNNAMED else ""
    )
    return "worse" if word in UNNAMED else word, "; ".join(filter(None, [reason, *map(_figure, figures), failed]))


def _figure(judgement: Judgement) -> str:
    if judgement.effect is None:
        return f"{judgement.quantity} {judgement.verdict}"
    change = f"{judgement.effect:+.1f}" if judgement.kind == "quality" else f"{100 * judgement.effect:+.1f} %"
    return f"{judgement.quantity} {change}, {judgement.verdict}"


def compared(before: Side, after: Side, known: Path | None, question: Question) -> tuple[Path, Path]:
    """The files of a run of each side, to be judged.

    Cells make their first updates; those that are not the same after the upgrade train to their end, on both sides.

    Args:
        before: one side.
        after: the other side.
        known: a run of the first, where there is one.
        question: what is run.

    Raises:
        InputError: where a cell does not finish before the upgrade, or the known run is of something else.
    """
    early = () if question.whole else first_updates(question.options, question.profile)
    stage = "first-updates" if early else "whole"
    old = known or run(before, question, stage, question.cells, early)
    check_finished(read_list(old), before.name, old)
    new = run(after, question, stage, question.cells, early)
    if known:
        check_alike(read_list(old), read_list(new), old)
    cells = cells_to_score(old, new)
    scored = with_scores(before, question, old, cells)
    check_finished(read_list(scored), before.name, scored)
    return scored, with_scores(after, question, new, cells)


def cells_to_score(old: Path, new: Path) -> list[str]:
    """Cells whose first updates are not the same on both sides, and those that trained to their end after the upgrade."""
    before, after = read_run(old), read_run(new)
    judged = gate(before.only(after.records), after) if after.records else []
    other = [j.cell for j in judged if j.quantity == "numerics" and j.verdict not in SAME_NUMERICS]
    scored = {record.cell for record in before.in_a_row if record.finished}
    return list(dict.fromkeys([*other, *(r.cell for r in after.in_a_row if r.finished and r.cell not in scored)]))


def with_scores(side: Side, question: Question, path: Path, cells: Sequence[str]) -> Path:
    """A side's run in which these cells trained to their end: the very run where they did."""
    scored = {record.cell for record in read_list(path) if record.finished}
    begun = [cell for cell in cells if cell not in scored]
    return with_cells_of(run(side, question, "whole", begun), path) if begun else path


def check_finished(records: Sequence[Record], name: str, path: Path) -> None:
    """Raises InputError where a cell of the first side has nothing to judge by."""
    for record in unfinished(records):
        reason = next(iter(record.missed), record.status)
        raise InputError(f"{record.cell} does not finish with {name}, so nothing can be told ({path}): {reason}")


def with_cells_of(whole: Path, begun: Path) -> Path:
    """A run's file with the rows of another in the place of its own; both stand in one folder."""
    rows = load(whole)["benchmarks"]
    trained = {row["extra_info"]["cell"] for row in rows if is_cell(row["extra_info"])}
    others = [row for row in load(begun)["benchmarks"] if row["extra_info"].get("cell") not in trained]
    path = whole.with_name(f"{begun.stem}-and-{whole.name}")
    save(load(whole) | {"benchmarks": [*rows, *others]}, path)
    return path


def way_on(before: Side, after: Side, cells: Sequence[str], options: argparse.Namespace) -> str:
    """Which commands find out more: which of several packages it was, which release, or which commit; empty without such."""
    names = [name for name in changed(before, after) if before.version(name) and after.version(name)]
    given = Wanted(specs=(*options.specs, *options.origin), files=options.requirement).names
    named = {*map(canonicalize_name, given), *after.checkouts, *before.checkouts}
    asked = [name for name in names if name in named] or names
    about = ["--cells", ",".join(cells[:NAMED]), *(["--by", options.by] if options.by != ",".join(FAILED_BY) else [])]
    profile = ["-m", options.profile] if options.profile != "quick" else []
    if len(asked) > 1:
        passed = [*about, *profile, *(["--", *options.pytest_options] if options.pytest_options else [])]
        commands = [shlex.join(["tunegrid", "upgrade", *_alone(before, after, name), *passed]) for name in asked[:NAMED]]
        return f"{' and '.join(f'`{command}`' for command in commands)} tell which of them it was"
    about += ["--", *profile, *options.pytest_options] if profile or options.pytest_options else []
    for name in asked:
        old, new = str(before.version(name)), str(after.version(name))
        if name in after.checkouts:
            return _way_to_the_commit(after.checkouts[name], old, about)
        if Version(old) < Version(new):
            ends = ["--good", f"{name}=={old}", "--bad", f"{name}=={new}"]
            return f"`{shlex.join(['tunegrid', 'bisect', *ends, *about])}` finds the release"
    return ""


def _alone(before: Side, after: Side, name: str) -> list[str]:
    """What asks for this package alone: it is another one after, or was before."""
    return [_spec(after, name)] if name in after.own else ["--from", _spec(before, name)]


def _spec(side: Side, name: str) -> str:
    return f"{name}@{side.checkouts[name]}" if name in side.checkouts else f"{name}=={side.version(name)}"


def _way_to_the_commit(repo: Path, version: str, about: Sequence[str]) -> str:
    try:
        [good, *_] = output_of(["git", "-C", str(repo), "tag", "--list", f"v{version}", version], "no tags") or ["COMMIT"]
    except InputError:
        return ""  # no repository
    hint = f", where COMMIT is one as good as {version}" if good == "COMMIT" else ""
    command = ["tunegrid", "bisect", "--repo", str(repo), "--good", good, "--bad", "HEAD", *about]
    return f"`{shlex.join(command)}` finds the commit{hint}"


def reported(verdict: RunVerdict, judged: Sequence[Judgement]) -> None:
    """Print the gate's table and its answer."""
    tables = [gate_section(judged, verdict.failing)] if judged else []
    say(text([*tables, Section(sentences=verdict.sentences)]))
    write_step_summary(summary(verdict, judged))


def cells_to_ask_about(judged: Sequence[Judgement], kinds: Sequence[str]) -> list[str]:
    """The cells that got worse; without such, those that changed."""
    worse = [judgement.cell for judgement in failing(judged, kinds)]
    return list(dict.fromkeys(worse or [judgement.cell for judgement in judged if judgement.verdict is Verdict.CHANGED]))


def page(old: Path, new: Path, answer: RunVerdict, path: Path) -> None:
    """Write the run after the upgrade as one page under the upgrade's answer, beside the run before."""
    after = read_page_run(new)
    write(page_of(after, [read_page_run(old, after.profile)], answer=answer), path)


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    usage = "tunegrid upgrade SPEC ... [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid upgrade", usage=usage, description=__doc__)
    add = parser.add_argument
    add("specs", nargs="*", metavar="SPEC", help="as of pip: transformers==5.25, peft; or a checkout: peft@../peft")
    add("-r", "--requirement", action="append", type=Path, default=[], metavar="FILE", help="requirements; repeatable")
    add("--from", dest="origin", action="append", default=[], metavar="SPEC", help="before: with this in place; repeatable")
    add("--before", type=Path, metavar="RUN.json", help="a run from before, in place of a new one")
    add("-m", "--profile", default="quick", metavar="NAME", help="of the cells: quick, zoo, full, ... (quick)")
    add("--cells", metavar="ID,ID", help="cells to run (default: all of the profile, or of --before)")
    add("--whole", action="store_true", help="train every cell to its end, not only those whose first updates changed")
    add("--speed", action="store_true", help="also let both take turns on some quick cells: did training become slower?")
    add("--by", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"of {','.join(COUNTED)}: what counts")
    add("--html", type=Path, metavar="PAGE.html", help="where to write the page (default: beside the runs)")
    add("--index-url", metavar="URL", help="of another package index")
    add("--find-links", type=Path, metavar="DIR", help="wheels to take, in place of an index")
    words = sys.argv[1:] if arguments is None else list(arguments)
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.pytest_options = words[end + 1 :]
    options.before = options.before and options.before.resolve()  # cells run in another folder
    return parser, options


def main(arguments: Sequence[str] | None = None, suite: Suite = suite) -> int:
    """Run both sides, say what changed; return the exit code. `suite` makes the commands that run cells."""
    parser, options = parsed(arguments)
    try:
        with ExitStack() as locks:
            return upgraded(options, suite, locks)
    except (InputError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        refuse(parser, f"{error}; {MAKES_ROOM}" if full else error)
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on with what is in {RUNS}")
        return 130


def upgraded(options: argparse.Namespace, suite: Suite, locks: ExitStack) -> int:
    """Make both sides, run, print; return the exit code.

    Raises:
        InputError: where an argument cannot be used, or the first side cannot be measured.
    """
    kinds, cells = kinds_of(options.by), tuple(options.cells.split(",")) if options.cells else ()
    question = Question(
        profile=options.profile, cells=cells, options=tuple(options.pytest_options), whole=options.whole, suite=suite
    )
    if options.before:
        question = with_cells_and_seeds(options.before, question)
    if options.speed:
        speed.checked(cells)  # before anything trains
    before, after = sides(options, locks)
    known = options.before or (None if options.origin else shipped_baseline(question))
    if known:
        say(f"before: {known}")
    try:
        old, new = compared(before, after, known, question)
    except NoCellRuns as error:
        if error.side is before:
            raise
        say(f"{changes(before, after) or 'the same libraries'}: {error}")
        return Outcome.WORSE.exit_code
    code = concluded(before, after, (old, new), kinds, options)
    if options.speed:
        comparison = speed.compared((before.python, after.python), cells)
        say("\n".join(comparison.report))
        code = min({code, comparison.outcome.exit_code} - {0}, default=0)  # worse before cannot tell
    return code


def sides(options: argparse.Namespace, locks: ExitStack) -> tuple[Side, Side]:
    """The environments before and after; raises InputError where there is nothing to compare."""
    places = [f"--index-url={options.index_url}"] if options.index_url else []
    places += ["--no-index", f"--find-links={options.find_links.resolve()}"] if options.find_links else []
    wanted = Wanted(specs=options.specs, files=options.requirement, options=places)
    origin = Wanted(specs=options.origin, options=places)
    if origin and options.before:
        raise InputError("--before is a run in the place of --from: give one of the two")
    if options.speed and options.before:
        raise InputError("--speed lets two environments take turns, and --before is a run: say with --from what was before")
    if not wanted and not origin and not options.before:
        raise InputError("say what to upgrade to, as in `tunegrid upgrade transformers==5.25`, or with --from what was before")
    after, before = side_of(wanted, locks), side_of(origin, locks)
    if after.folder == before.folder and not options.before:
        raise InputError(f"nothing to upgrade: {wanted.text} is what --from {origin.text} installs")
    return before, after


def concluded(before: Side, after: Side, runs: tuple[Path, Path], kinds: Sequence[str], options: argparse.Namespace) -> int:
    """Print the verdicts on the run after the upgrade, write its page, and say in a sentence what changed."""
    old, new = runs
    known, records = read_list(old), read_list(new)
    run_before, run_after = Run.of(known, old), Run.of(records, new)
    asked = run_before.only(options.cells.split(",")) if options.cells else run_before
    judged = gate(asked, run_after) if run_after.records else []
    answer = verdict_of(records, judged, kinds, baseline="the run before", before=known)
    if cells := cells_to_ask_about(judged, kinds):
        answer = replace(answer, next_step=way_on(before, after, cells, options) or answer.next_step)
    reported(answer, judged)
    target = options.html or new.with_name(f"{new.stem}-after-{old.parent.name}.html")
    page(old, new, answer, target)
    say(f"page: {target}")
    recorded = recorded_changes(known, records) if options.before else ""
    say(sentence(recorded or changes(before, after) or "the same libraries", judged, kinds, failures(known, records)))
    return answer.exit_code
