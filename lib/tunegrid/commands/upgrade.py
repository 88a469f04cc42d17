"""Can I upgrade? `tunegrid upgrade 'transformers==5.25'` runs the cells before and after, and says what changed.

What pip would change here for the upgrade is installed into an environment of its own, which takes all else from this one. A
package without a version means its newest; `peft@../peft` is a checkout as it lies on the disk. "Before" is this environment,
or the one with what --from names. Cells make their first updates; those that are not the same train to their end. Four cells of
the libraries' own path run, too. The same command goes on where it was stopped. The exit code is that of a gate: 1 if a score
or a memory figure is worse, or the libraries' own path now differs from ours, 6 if that cannot be told, else 0.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from tunegrid.commands.environments import (
    STOCK,
    Environment,
    NoRun,
    Suite,
    add_options,
    code_of,
    environment_of,
    first_updates,
    here,
    lock_of,
    places_of,
    requirement_of,
    suite,
)
from tunegrid.errors import InputError
from tunegrid.grid.recipes import MICRO
from tunegrid.machine import PACKAGES
from tunegrid.record import Record
from tunegrid.results.answer import answer_of
from tunegrid.results.files import is_cell, load, read_list, save
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.gate_report import Report, as_text, write_step_summary
from tunegrid.results.judgements import SAME_NUMERICS, Outcome
from tunegrid.results.outcomes import kinds_of
from tunegrid.results.table import some
from tunegrid.terminal import say

# Cells of the libraries' own path: windows of long contexts, generated answers, an encoder with a decoder, a classifier.
STOCK_CELLS = ("bert_qa_lora", "gpt2_sum_lora", "t5_sum_sft", "bert_sa_lora")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is run on both sides: `cells` of a profile, none for all, with `options` of pytest."""

    profile: str
    cells: Sequence[str]
    options: Sequence[str]
    suite: Suite

    def run(self, environment: Environment, stage: str, cells: Sequence[str], options: Sequence[str] = ()) -> Path:
        """The file of a run; of two equal options pytest takes the last, the user's. Raises NoRun if there is none."""
        shared = ("--resume", *(("-n", "auto") if self.profile in MICRO else ()))
        command = self.suite(cells, (*shared, *options, *self.options), self.profile)
        return environment.run(
            command, [self.profile, sorted(cells)], self.options, f"{stage}.json", lambda path: not unfinished(read_list(path))
        )

    def stock(self, environment: Environment) -> dict[str, str]:
        """Where the libraries' own path differs from ours, by cell; empty if it does not. None of other profiles than quick."""
        cells = [cell for cell in STOCK_CELLS if cell in (self.cells or STOCK_CELLS)] if self.profile == "quick" else []
        if not cells:
            return {}
        command = self.suite(cells, ("-n", "auto"), STOCK)
        root = ElementTree.parse(environment.run(command, cells, (), f"{STOCK}.xml", lambda path: True)).getroot()
        differences = {}
        for test in root.iter("testcase"):
            [cell, *_] = [cell for cell in cells if cell in test.get("name", "")] or [""]
            bad = [result for result in test if result.tag in ("failure", "error")]
            if cell:
                differences[cell] = str(bad[0].get("message")).strip().partition("\n")[0] if bad else ""
        return differences


def unfinished(records: Sequence[Record]) -> list[Record]:
    """Those of which the gate has nothing to judge."""
    return [record for record in records if not record.finished and record.status != "begun"]


def runs_of(before: Environment, after: Environment, question: Question, *, whole: bool) -> tuple[Path, Path]:
    """The files of a run of each side, to be judged.

    Cells make their first updates; those that are not the same after the upgrade train to their end, on both sides.

    Raises:
        InputError: if a cell does not finish before the upgrade.
    """
    early = () if whole else first_updates(question.options, question.profile)
    old = question.run(before, "first-updates" if early else "whole", question.cells, early)
    check_finished(old, before)
    new = question.run(after, "first-updates" if early else "whole", question.cells, early)
    if not early:
        return old, new
    first, second = read_run(old), read_run(new)
    judged = gate(first, second) if second.records else []
    cells = [j.cell for j in judged if j.quantity == "numerics" and j.verdict not in SAME_NUMERICS]
    if not cells:
        return old, new
    scored = question.run(before, "whole", cells)
    check_finished(scored, before)
    return joined(scored, old), joined(question.run(after, "whole", cells), new)


def check_finished(path: Path, environment: Environment) -> None:
    """Raises InputError if a cell of the first side has nothing to judge by."""
    for record in unfinished(read_list(path)):
        reason = next(iter(record.missed), record.status)
        raise InputError(f"{record.cell} does not finish with {environment.name}, so nothing can be told ({path}): {reason}")


def joined(whole: Path, begun: Path) -> Path:
    """A run's file with the rows of another one of first updates for the cells that it lacks; all stand in one folder."""
    rows = load(whole)["benchmarks"]
    trained = {row["extra_info"]["cell"] for row in rows if is_cell(row["extra_info"])}
    others = [row for row in load(begun)["benchmarks"] if row["extra_info"].get("cell") not in trained]
    path = whole.with_name(f"{begun.stem}-and-{whole.name}")
    save(load(whole) | {"benchmarks": [*rows, *others]}, path)
    return path


def changes(before: Environment, after: Environment) -> str:
    """As "peft 0.21.2 -> 0.22.0", the suite's libraries first; of equal versions the archives differ."""
    names = sorted({**before.own, **after.own}, key=lambda name: (name not in PACKAGES, name))
    versions = {name: (before.version(name), after.version(name)) for name in names}
    differing = {name: pair for name, pair in versions.items() if pair[0] != pair[1]} or versions
    return some(
        [f"{name} {old} -> {new}" + (" (another archive)" if old == new else "") for name, (old, new) in differing.items()]
    )


def sides(options: argparse.Namespace) -> tuple[Environment, Environment]:
    """The environments before and after; raises InputError if there is nothing to compare."""
    if not options.specs and not options.origin:
        raise InputError("say what to upgrade to, as in `tunegrid upgrade transformers==5.25`, or with --from what was before")
    places = places_of(options)

    def side(specs: Sequence[str]) -> Environment:
        if not specs:
            return here()
        wanted = list(map(requirement_of, specs))
        lock = lock_of([requirement for _, requirement in wanted], places)
        if not lock:
            raise InputError(f"nothing to upgrade: what is installed here is as {' '.join(specs)} asks")
        return environment_of(wanted[0][0], lock, places)

    after, before = side(options.specs), side(options.origin)
    if after.folder == before.folder:
        raise InputError(f"nothing to upgrade: {' '.join(options.specs)} is what --from {' '.join(options.origin)} installs")
    return before, after


def upgraded(options: argparse.Namespace, suite: Suite) -> int:
    """Make both sides, run, print; return the exit code.

    Raises:
        InputError: if an argument cannot be used, or the first side cannot be measured.
    """
    kinds, cells = kinds_of(options.by), tuple(options.cells.split(",")) if options.cells else ()
    question = Question(profile=options.profile, cells=cells, options=options.pytest_options, suite=suite)
    before, after = sides(options)
    what = changes(before, after)
    try:
        old, new = runs_of(before, after, question, whole=options.whole)
        differences = question.stock(before), question.stock(after)
    except NoRun as error:
        if error.environment is before:
            raise
        say(f"{what}: {error}")
        return Outcome.WORSE.exit_code
    return concluded(what, old, new, kinds, differences)


def concluded(what: str, old: Path, new: Path, kinds: Sequence[str], differences: tuple[dict[str, str], dict[str, str]]) -> int:
    """Print the verdicts on the run after the upgrade, and the answer; return the exit code."""
    known, records = read_list(old), read_list(new)
    run = Run.of(records, new)
    judged = gate(Run.of(known, old), run) if run.records else []
    different = {cell: text for cell, text in differences[1].items() if text and text != differences[0].get(cell)}
    troubles = [f"the libraries' own path of {cell} differs, which did not: {text}" for cell, text in different.items()]
    answer = answer_of(records, judged, kinds, baseline="the run before", before=known, troubles=troubles)
    report = Report(judged=judged, answer=answer)
    write_step_summary(report)
    say(f"`{shlex.join(['tunegrid', 'page', str(new), str(old), '-o', 'upgrade.html'])}` shows both runs")
    say(as_text(report))
    stock = f" The libraries' own path: {len(differences[1]) - len(different)} of {len(differences[1])} cells as before."
    say(f"{what}: {answer.answer}{stock if differences[1] else ''}")
    return answer.exit_code


def main(arguments: Sequence[str] | None = None, suite: Suite = suite) -> int:
    """Run both sides, say what changed; return the exit code. `suite` makes the commands that run cells."""
    usage = "tunegrid upgrade SPEC ... [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid upgrade", usage=usage, description=__doc__)
    parser.add_argument(
        "specs", nargs="*", metavar="SPEC", help="as of pip: transformers==5.25, peft; or a checkout: peft@../peft"
    )
    parser.add_argument(
        "--from", dest="origin", action="append", default=[], metavar="SPEC", help="before: with this in place; repeatable"
    )
    parser.add_argument("-m", "--profile", default="quick", metavar="NAME", help="of the cells: quick, zoo, full, ... (quick)")
    parser.add_argument("--cells", metavar="ID,ID", help="cells to run (default: all of the profile)")
    parser.add_argument(
        "--whole", action="store_true", help="train every cell to its end, not only those whose first updates changed"
    )
    add_options(parser)
    words = sys.argv[1:] if arguments is None else list(arguments)
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end], argparse.Namespace(pytest_options=words[end + 1 :]))
    return code_of(parser, partial(upgraded, options, suite))
