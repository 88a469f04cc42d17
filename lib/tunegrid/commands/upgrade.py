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
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

from tunegrid.commands import environments
from tunegrid.commands.environments import STOCK, Environment, NoRun, Suite
from tunegrid.errors import InputError
from tunegrid.grid.recipes import MICRO
from tunegrid.machine import PACKAGES
from tunegrid.record import Record
from tunegrid.results.files import is_cell, load, read_list, read_saved, save
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import SAME_NUMERICS, Outcome
from tunegrid.results.report import Section, some, text
from tunegrid.results.summary import gate_section, summary, write_step_summary
from tunegrid.results.verdict import kinds_of, verdict_of
from tunegrid.terminal import say

# Cells of the libraries' own path: windows of long contexts, generated answers, an encoder with a decoder, a classifier.
STOCK_CELLS = ("bert_qa_lora", "gpt2_sum_lora", "t5_sum_sft", "bert_sa_lora")
NOT_RUN = "its test did not run"
Measure = Callable[..., Path]  # of an environment, a stage's name, cells (none for all) and options of the stage
Runs = tuple[Path, Path]  # the files of a run before and after


def run_cells(
    options: argparse.Namespace, suite: Suite, side: Environment, stage: str, cells: Sequence[str], *more: str
) -> Path:
    """The file of a run; of two equal options pytest takes the last, the user's. Raises NoRun if there is none."""
    shared = ("--resume", *(("-n", "auto") if options.profile in MICRO else ()))
    command = suite(cells, (*shared, *more, *options.pytest_options), options.profile)
    about = [options.profile, sorted(cells)]
    return side.run(command, about, options.pytest_options, f"{stage}.json", lambda path: not unfinished(read_list(path)))


def unfinished(records: Sequence[Record]) -> list[Record]:
    """Those of which the gate has nothing to judge."""
    return [record for record in records if not record.finished and not record.first_updates]


def stock_differences(suite: Suite, side: Environment, cells: Sequence[str]) -> dict[str, str]:
    """How the libraries' own path differs from ours, by cell; an empty text if it does not."""
    if not cells:
        return {}

    def differences(path: Path) -> dict[str, str]:
        found = dict.fromkeys(cells, NOT_RUN)
        for test in ElementTree.parse(path).iter("testcase"):
            bad = [result.get("message", "").removeprefix("Failed: ") for result in test if result.tag in ("failure", "error")]
            found |= {cell: bad[0].partition("\n")[0] if bad else "" for cell in cells if cell in test.get("name", "")}
        return found

    command = suite(cells, ("-n", "auto"), STOCK)
    return differences(side.run(command, cells, (), f"{STOCK}.xml", lambda path: NOT_RUN not in differences(path).values()))


def runs_of(before: Environment, after: Environment, cells: Sequence[str], first_updates: Sequence[str], run: Measure) -> Runs:
    """The files of a run of each side, to be judged.

    With the option for `first_updates`, cells make these; those that are not the same train to their end, on both sides. Raises
    InputError if a cell does not finish before the upgrade.
    """
    stage = "first-updates" if first_updates else "whole"
    old, new = finished_run(run(before, stage, cells, *first_updates), before), run(after, stage, cells, *first_updates)
    run_before, run_after = read_run(old), read_run(new)
    judged = gate(run_before, run_after) if first_updates and run_after.records else []
    changed_cells = [j.cell for j in judged if j.quantity == "numerics" and j.verdict not in SAME_NUMERICS]
    if not changed_cells:
        return old, new
    whole = finished_run(run(before, "whole", changed_cells), before)
    return merged_run(whole, old), merged_run(run(after, "whole", changed_cells), new)


def finished_run(path: Path, side: Environment) -> Path:
    """The same path; raises InputError if a cell of this run has nothing to judge by."""
    for record in unfinished(read_list(path)):
        reason = next(iter(record.missed), record.status)
        raise InputError(f"{record.cell} does not finish with {side.name}, so nothing can be told ({path}): {reason}")
    return path


def merged_run(whole: Path, begun: Path) -> Path:
    """A run's file with the rows of another one of first updates for the cells that it lacks; all stand in one folder."""
    rows = load(whole)["benchmarks"]
    trained = {row["extra_info"]["cell"] for row in rows if is_cell(row["extra_info"])}
    others = [row for row in load(begun)["benchmarks"] if row["extra_info"].get("cell") not in trained]
    path = whole.with_name(f"{begun.stem}-and-{whole.name}")
    save(load(whole) | {"benchmarks": [*rows, *others]}, path)
    return path


def changes(before: Environment, after: Environment) -> str:
    """As "peft 0.21.2 -> 0.22.0", the suite's libraries first; of equal versions the archives differ."""

    def version_on(side: Environment, name: str) -> str:
        try:
            return side.own.get(name) or version(name)
        except PackageNotFoundError:
            return "none"

    names = sorted({**before.own, **after.own}, key=lambda name: (name not in PACKAGES, name))
    versions = {name: (version_on(before, name), version_on(after, name)) for name in names}
    differing = {name: pair for name, pair in versions.items() if pair[0] != pair[1]} or versions
    return some(
        [f"{name} {old} -> {new}" + (" (another archive)" if old == new else "") for name, (old, new) in differing.items()]
    )


def environments_of(options: argparse.Namespace) -> tuple[Environment, Environment]:
    """The environments before and after; raises InputError if there is nothing to compare."""
    specs, origin = options.specs, options.origin
    if not specs and not origin:
        raise InputError("say what to upgrade to, as in `tunegrid upgrade transformers==5.25`, or with --from what was before")
    wanted = [list(map(environments.requirement_of, one)) for one in (origin, specs)]
    before, after = (environments.environment_with(one, options.find_links) if one else environments.here() for one in wanted)
    if after.folder == before.folder:
        raise InputError(f"nothing to upgrade: {' '.join(specs)} is what --from {' '.join(origin)} installs")
    return before, after


def run_upgrade(options: argparse.Namespace, suite: Suite) -> int:
    """Make both sides, run, print the verdicts and what changed; return the exit code. Raises InputError, as `runs_of`."""
    kinds, cells = kinds_of(options.by), options.cells.split(",") if options.cells else []
    stock_cells = [cell for cell in STOCK_CELLS if cell in (cells or STOCK_CELLS)] if options.profile == "quick" else []
    first_updates = () if options.whole else environments.first_updates(options.pytest_options, options.profile)
    before, after = environments_of(options)
    what = changes(before, after)
    try:
        old, new = runs_of(before, after, cells, first_updates, partial(run_cells, options, suite))
        stock_before, stock = (stock_differences(suite, side, stock_cells) for side in (before, after))
    except NoRun as error:
        if error.environment == before:
            raise
        say(f"{what}: {error}")
        return Outcome.WORSE.exit_code
    new_differences = [cell for cell in stock if stock[cell] and not stock_before[cell]]
    own_path = "the libraries' own path of"
    troubles = [f"{own_path} {cell} differs from ours now, and did not before: {stock[cell]}" for cell in new_differences]
    saved, saved_before = read_saved(new), read_saved(old)
    run = Run.of(saved.records, new)
    judged = gate(Run.of(saved_before.records, old), run) if run.records else []
    verdict = verdict_of(
        saved.records,
        judged,
        kinds,
        baseline="the run before",
        before=saved_before.records,
        troubles=troubles,
        command=saved.command,
        files=(str(old), str(new)),
    )
    write_step_summary(summary(verdict, judged))
    say(f"`{shlex.join(['tunegrid', 'page', str(new), str(old), '-o', 'upgrade.html'])}` shows both runs")
    tables = [gate_section(judged, verdict.failing)] if judged else []
    say(text([*tables, Section(sentences=verdict.sentences)]))
    equal_before, equal = (sum(not text for text in differences.values()) for differences in (stock_before, stock))
    in_cells = f" The libraries' own path is ours in {equal} of {len(stock)} cells, before in {equal_before}." if stock else ""
    say(f"{what}: {verdict.answer}{in_cells}")
    return verdict.exit_code


def main(arguments: Sequence[str] | None = None, suite: Suite = environments.suite) -> int:
    """Run both sides, say what changed; return the exit code. `suite` makes the commands that run cells."""
    usage = "tunegrid upgrade SPEC ... [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid upgrade", usage=usage, description=__doc__)
    add = parser.add_argument
    add("specs", nargs="*", metavar="SPEC", help="as of pip: transformers==5.25, peft; or a checkout: peft@../peft")
    add("--from", dest="origin", action="append", default=[], metavar="SPEC", help="before: with this in place; repeatable")
    add("-m", "--profile", default="quick", metavar="NAME", help="of the cells: quick, zoo, full, ... (quick)")
    add("--cells", metavar="ID,ID", help="cells to run (default: all of the profile)")
    add("--whole", action="store_true", help="train every cell to its end, not only those whose first updates changed")
    environments.add_options(parser)
    words = sys.argv[1:] if arguments is None else list(arguments)
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.pytest_options = words[end + 1 :]
    return environments.code_of(parser, partial(run_upgrade, options, suite))
