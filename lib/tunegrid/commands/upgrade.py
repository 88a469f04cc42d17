"""Can I upgrade? `tunegrid upgrade 'transformers==5.25'` runs the cells before and after, and says what changed.

What is named, and what must change with it, goes into a new environment; it takes all others from this one. A package
without a version means its newest; `peft@../peft` is a checkout with its uncommitted changes. "Before" is this environment, or
one with the packages of --from. Cells make their first updates; those that differ train to their end. Four cells also run on
the libraries' own path. After a stop, the same command goes on. The exit code is the gate's: 1 if a score or a memory figure is
worse, or the libraries' own path now differs from ours, 6 if numerics changed or the gate cannot tell, else 0.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

from tunegrid.commands import environments
from tunegrid.commands.environments import Environment, NoRun
from tunegrid.commands.packages import find_packages, installed_version, parse_requirement
from tunegrid.errors import InputError
from tunegrid.gate.judgements import DEFAULT_KINDS, SAME_NUMERICS, Judgement, parse_kinds
from tunegrid.grid.recipes import MICRO, SCORED
from tunegrid.machine import PACKAGES
from tunegrid.report.summary import gate_section, summary, write_step_summary
from tunegrid.report.tables import Section, text
from tunegrid.report.verdict import Rank, run_verdict
from tunegrid.runs.files import SavedRun, read_saved
from tunegrid.terminal import say
from tunegrid.words import count_text, some

# Cells of the libraries' own path: windows of long contexts, generated answers, an encoder with a decoder, a classifier.
STOCK_CELLS = ("bert_qa_lora", "gpt2_sum_lora", "t5_sum_sft", "bert_sa_lora")
Sides = tuple[Environment, Environment]  # before and after
Runs = tuple[SavedRun, SavedRun]


def make_environments(options: argparse.Namespace) -> Sides:
    """The environments before and after; raises InputError if there is nothing to compare."""
    specs, origin = options.specs, options.origin
    if not specs and not origin:
        raise InputError("say what to upgrade to, as in `tunegrid upgrade transformers==5.25`, or from what, with --from")
    required = [list(map(parse_requirement, one)) for one in (origin, specs)]
    before, after = (environments.get_environment(one, options.find_links) for one in required)
    if after.folder == before.folder:
        raise InputError(f"nothing to upgrade: {' '.join(specs)} is what --from {' '.join(origin)} installs")
    if not (specs and origin) and (before.is_copy or after.is_copy):
        raise InputError(f"nothing to upgrade: {' '.join(specs or origin)} is installed here already")
    return before, after


def changes(before: Environment, after: Environment) -> str:
    """As "peft 0.21.2 -> 0.22.0", the suite's libraries first; of equal versions the archives differ."""
    suite_versions = {name: installed_version(package) for name, package in find_packages(sys.path).items()}
    names = sorted({**before.own, **after.own}, key=lambda name: (name not in PACKAGES, name))
    versions = [(name, *((suite_versions | {**side.own}).get(name, "none") for side in (before, after))) for name in names]
    version_changes = [f"{name} {old} -> {new}" for name, old, new in versions if old != new]
    return some(version_changes or [f"{name} {old} -> {new} (another archive)" for name, old, new in versions])


def run_side(
    options: argparse.Namespace, side: Environment, cells: Sequence[str], first_updates: Sequence[str] = ()
) -> SavedRun:
    """A run of cells (none for all) in an environment; what it has measured already is not measured again."""
    stage = "first-updates" if first_updates else "whole"
    selection = ["-m", options.profile, *(["--cells", ",".join(cells)] if cells else [])]
    workers = ("-n", "auto") if options.profile in MICRO else ()
    # Of two equal options pytest takes the last, the user's.
    arguments = [*selection, "--resume", *workers, *first_updates, *options.pytest_options]
    return read_saved(side.run(f"{stage}.json", arguments))


def run_sides(options: argparse.Namespace, sides: Sides, cells: Sequence[str], first_updates: Sequence[str] = ()) -> Runs:
    """A run of cells (none for all) on both sides; raises InputError if a cell does not finish before the upgrade."""
    before, after = sides
    old = run_side(options, before, cells, first_updates)
    for record in old.records:
        if not record.finished and not record.first_updates:
            reason = next(iter(record.missed), record.status)
            raise InputError(f"{record.cell} does not finish with {before.name} ({old.path}): {reason}")
    return old, run_side(options, after, cells, first_updates)


def judge_sides(old: SavedRun, new: SavedRun) -> list[Judgement]:
    """The gate's judgements on the cells that were sound before."""
    from tunegrid.gate.gate import Run, gate  # which brings scipy

    unsound = unsound_cells(old)
    before, after = (
        Run.make((record for record in run.records if record.cell not in unsound), run.path, doubt=run.doubt)
        for run in (old, new)
    )
    if not before.records or not after.records:
        return []
    return gate(before, after)


def unsound_cells(run: SavedRun) -> list[str]:
    """The cells of which an audit failed, at any seed."""
    from tunegrid.gate.gate import is_sound  # which brings scipy

    return list(dict.fromkeys(record.cell for record in run.records if not is_sound(record)))


def judged_runs(
    options: argparse.Namespace, sides: Sides, cells: Sequence[str], first_updates: Sequence[str]
) -> tuple[Runs, list[Judgement]]:
    """The runs of both sides, and what the gate says of them.

    With the option for `first_updates`, cells make these; those that are not the same train to their end, on both sides.
    """
    runs = run_sides(options, sides, cells, first_updates)
    judgements = judge_sides(*runs)
    changed_cells = cells_with_changes(judgements)
    if not first_updates or not changed_cells:
        return runs, judgements
    old, new = (
        replace(end, records=[*end.records, *(record for record in start.records if record.cell not in changed_cells)])
        for start, end in zip(runs, run_sides(options, sides, changed_cells), strict=True)
    )
    return (old, new), judge_sides(old, new)


def cells_with_changes(judgements: Sequence[Judgement]) -> list[str]:
    """The cells whose numerics are not the same."""
    return [j.cell for j in judgements if j.quantity == "numerics" and j.verdict not in SAME_NUMERICS]


def stock_differences(side: Environment, cells: Sequence[str]) -> dict[str, str]:
    """How the libraries' own path differs from ours, by cell; an empty text if it does not."""
    differences = dict.fromkeys(cells, "its test did not run")
    path = side.run("stock.xml", ["-m", "stock", "--cells", ",".join(cells), "-n", "auto"]) if cells else None
    for test in ElementTree.parse(path).iter("testcase") if path else ():
        faults = [result.get("message", "").removeprefix("Failed: ") for result in test if result.tag in ("failure", "error")]
        differences |= {cell: faults[0].partition("\n")[0] if faults else "" for cell in cells if cell in test.get("name", "")}
    return differences


def run_upgrade(options: argparse.Namespace) -> int:
    """Make both sides, run, print the verdicts and what changed; return the exit code. Raises InputError, as `run_sides`."""
    kinds, cells = parse_kinds(options.gate_on), options.cells.split(",") if options.cells else []
    stock_cells = [cell for cell in STOCK_CELLS if cell in (cells or STOCK_CELLS)] if options.profile == "quick" else []
    first_updates = ("--first-updates",) if options.profile in SCORED and not options.whole else ()
    sides = make_environments(options)
    subject = changes(*sides)
    try:
        (old, new), judgements = judged_runs(options, sides, cells, first_updates)
        stock_before, stock = (stock_differences(side, stock_cells) for side in sides)
    except NoRun as error:
        if error.environment == sides[0]:
            raise
        say(f"{subject}: {error}")
        return Rank.FAILED.exit_code
    unsound = unsound_cells(old)
    uncompared = ""
    if unsound:
        cells = count_text(len(unsound), len({record.cell for record in old.records}), "cell")
        uncompared = f"{cells} not compared, since an audit failed before the upgrade ({some(unsound)})"
    new_differences = [cell for cell in stock if stock[cell] and not stock_before[cell]]
    own_path = "the libraries' own path of"
    differences = [f"{own_path} {cell} differs from ours now, and did not before: {stock[cell]}" for cell in new_differences]
    files = (str(old.path), str(new.path))
    verdict = run_verdict(
        new.records,
        judgements,
        kinds,
        baseline="the run before",
        before=old.records,
        other_failures=differences,
        uncompared=uncompared,
        command=new.command,
        files=files,
        runner=sides[1].command,
        upgrade=upgrade_words(options),
    )
    write_step_summary(summary(verdict, judgements))
    say(f"`{shlex.join(['tunegrid', 'page', *reversed(files), '-o', 'upgrade.html'])}` shows both runs")
    tables = [gate_section(judgements, verdict.failing)] if judgements else []
    say(text([*tables, Section(sentences=verdict.sentences)]))
    equal_before, equal = (sum(not text for text in differences.values()) for differences in (stock_before, stock))
    in_cells = f" The libraries' path equals ours in {equal} of {len(stock)} cells, before in {equal_before}." if stock else ""
    say(f"{subject}: {verdict.answer}{in_cells}")
    return verdict.exit_code


def upgrade_words(options: argparse.Namespace) -> list[str]:
    """The words that run both sides again, to which options of pytest can be added."""
    words = ["tunegrid", "upgrade", *options.specs]
    for spec in options.origin:
        words += ["--from", spec]
    if options.profile != "quick":
        words += ["-m", options.profile]
    if options.cells:
        words += ["--cells", options.cells]
    if options.gate_on != ",".join(DEFAULT_KINDS):
        words += ["--gate-on", options.gate_on]
    if options.find_links:
        words += ["--find-links", str(options.find_links)]
    return [*words, "--whole", "--", *options.pytest_options]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both sides, say what changed; return the exit code. Raises InputError, as `run_upgrade`."""
    usage = "tunegrid upgrade SPEC ... [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid upgrade", usage=usage, description=__doc__)
    add = parser.add_argument
    add("specs", nargs="*", metavar="SPEC", help="what pip takes: transformers==5.25, peft; or a checkout: peft@../peft")
    add("--from", dest="origin", action="append", default=[], metavar="SPEC", help="packages to start from; repeatable")
    add("-m", "--profile", default="quick", metavar="NAME", help="of the cells: quick, zoo, full, ... (default quick)")
    add("--cells", metavar="ID,ID", help="cells to run (default: all of the profile)")
    add("--whole", action="store_true", help="train every cell to its end, not only those whose first updates changed")
    environments.add_options(parser)
    words = list(arguments or ())
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.pytest_options = words[end + 1 :]
    return run_upgrade(options)
