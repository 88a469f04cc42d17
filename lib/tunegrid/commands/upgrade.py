"""Can I upgrade?

`tunegrid upgrade 'transformers==5.25'` runs the cells before and after, and says what changed.

The packages you name, and any others that must change with them, go into a new environment; all
remaining packages come from the current one. A package without a version means its newest release;
`peft@../peft` is a checkout with its uncommitted changes. "Before" is the current environment, or
one with the packages given by --from. Cells make their first updates; cells whose numerics differ
are then trained to the end. Four quick cells also run on the libraries' own path. If interrupted,
run the same command again to continue. The exit code is the gate's: 1 if a score or a memory figure
is worse, or if the libraries' own path newly differs from ours; otherwise 6 if numerics changed or
the gate cannot tell, else 0.
"""

import argparse
import shlex
from collections.abc import Sequence
from xml.etree import ElementTree

from tunegrid.commands import environments
from tunegrid.commands.environments import Environment, NoRun
from tunegrid.commands.packages import parse_requirement
from tunegrid.commands.sides import Runner, package_changes, parse_options, unsound_cells
from tunegrid.errors import InputError
from tunegrid.gate.judgements import DEFAULT_KINDS
from tunegrid.report.summary import gate_section, summary, write_step_summary
from tunegrid.report.tables import Section, text
from tunegrid.report.verdict import Rank, run_verdict
from tunegrid.runs.files import SavedRun
from tunegrid.terminal import say
from tunegrid.words import count_text, some

# Cells that also run on the libraries' own path (`Trainer`). They cover windows of long contexts,
# generated answers, an encoder-decoder and a classifier.
STOCK_CELLS = ("bert_qa_lora", "gpt2_sum_lora", "t5_sum_sft", "bert_sa_lora")


def make_environments(options: argparse.Namespace) -> tuple[Environment, Environment]:
    """Create the old and new environments. Raises InputError if they would not differ."""
    specs = options.specs
    origin = options.origin
    if not specs and not origin:
        example = "say what to upgrade to, as in `tunegrid upgrade transformers==5.25`"
        raise InputError(f"{example}, or from what, with --from")
    old_requirements = [parse_requirement(spec) for spec in origin]
    new_requirements = [parse_requirement(spec) for spec in specs]
    before = environments.get_environment(old_requirements, options.find_links)
    after = environments.get_environment(new_requirements, options.find_links)
    if after.folder == before.folder:
        installed = f"{' '.join(specs)} is what --from {' '.join(origin)} installs"
        raise InputError(f"nothing to upgrade: {installed}")
    names_one_side = not specs or not origin
    if names_one_side and (before.is_copy or after.is_copy):
        raise InputError(
            f"nothing to upgrade: {' '.join(specs or origin)} is installed here already"
        )
    return before, after


def stock_differences(side: Environment, cells: Sequence[str]) -> dict[str, str]:
    """Describes, by cell, how training on the libraries' own path differs from ours, if at all."""
    if not cells:
        return {}
    differences = dict.fromkeys(cells, "its test did not run")
    arguments = ["-m", "stock", "--cells", ",".join(cells), "-n", "auto"]
    path = side.run("stock.xml", arguments)
    for test in ElementTree.parse(path).iter("testcase"):
        for cell in cells:
            if cell in test.get("name", ""):
                differences[cell] = failure_line(test)
    return differences


def failure_line(test: ElementTree.Element) -> str:
    """The first line of a test's failure in JUnit's XML; empty if the test did not fail."""
    for result in test:
        if result.tag in ("failure", "error"):
            message = result.get("message", "").removeprefix("Failed: ")
            return message.partition("\n")[0]
    return ""


def run_upgrade(options: argparse.Namespace) -> int:
    """Run cells in both environments and print the verdict; return the exit code.

    Raises:
        InputError: if there is nothing to compare, or a cell does not finish before the upgrade.
    """
    stock_cells = []
    if options.profile == "quick":
        chosen = options.cells or STOCK_CELLS
        stock_cells = [cell for cell in STOCK_CELLS if cell in chosen]
    before, after = make_environments(options)
    subject = package_changes(before, after)
    runner = Runner(options, is_strict=True)
    first_updates = runner.can_begin and not options.whole
    try:
        compared = runner.compare(before, after, first_updates=first_updates, finishes=True)
        stock_before = stock_differences(before, stock_cells)
        stock = stock_differences(after, stock_cells)
    except NoRun as error:
        if error.environment == before:
            raise
        say(f"{subject}: {error}")
        return Rank.FAILED.exit_code
    own_path = "the libraries' own path of"
    differences = []
    for cell, difference in stock.items():
        if difference and not stock_before[cell]:
            words = f"{own_path} {cell} differs from ours now, and did not before: {difference}"
            differences.append(words)
    files = (str(compared.old.path), str(compared.new.path))
    verdict = run_verdict(
        compared.new.records,
        compared.judgements,
        options.kinds,
        baseline="the run before",
        before=compared.old.records,
        other_failures=differences,
        uncompared=uncompared_cells(compared.old),
        command=compared.new.command,
        files=files,
        runner=after.command,
        upgrade=upgrade_words(options),
    )
    write_step_summary(summary(verdict, compared.judgements))
    page = ["tunegrid", "page", *reversed(files), "-o", "upgrade.html"]
    say(f"`{shlex.join(page)}` shows both runs")
    tables = []
    if compared.judgements:
        tables.append(gate_section(compared.judgements, verdict.failing))
    say(text([*tables, Section(sentences=verdict.sentences)]))
    answer = f"{subject}: {verdict.answer}"
    if stock:
        equal = list(stock.values()).count("")
        equal_before = list(stock_before.values()).count("")
        path = "The libraries' path equals ours in"
        answer += f" {path} {equal} of {len(stock)} cells, before in {equal_before}."
    say(answer)
    return verdict.exit_code


def uncompared_cells(old: SavedRun) -> str:
    """A clause that names the cells that were unsound before the upgrade; empty if none were."""
    unsound = unsound_cells(old)
    if not unsound:
        return ""
    cells = count_text(len(unsound), len({record.cell for record in old.records}), "cell")
    return f"{cells} not compared, since an audit failed before the upgrade ({some(unsound)})"


def upgrade_words(options: argparse.Namespace) -> list[str]:
    """The command that reruns both sides in full; further pytest options can be appended."""
    words = ["tunegrid", "upgrade", *options.specs]
    for spec in options.origin:
        words += ["--from", spec]
    if options.profile != "quick":
        words += ["-m", options.profile]
    if options.cells:
        words += ["--cells", ",".join(options.cells)]
    if options.gate_on != ",".join(DEFAULT_KINDS):
        words += ["--gate-on", options.gate_on]
    if options.find_links:
        words += ["--find-links", str(options.find_links)]
    return [*words, "--whole", "--", *options.pytest_options]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the upgrade; return the exit code.

    Raises InputError for the same reasons as `run_upgrade`.
    """
    usage = "tunegrid upgrade SPEC ... [OPTION ...] [-- OPTION OF PYTEST ...]"
    parser = argparse.ArgumentParser(prog="tunegrid upgrade", usage=usage, description=__doc__)
    add = parser.add_argument
    specs = "what pip takes: transformers==5.25, peft; or a checkout: peft@../peft"
    add("specs", nargs="*", metavar="SPEC", help=specs)
    origin = "packages to start from; repeatable"
    add("--from", dest="origin", action="append", default=[], metavar="SPEC", help=origin)
    whole = "train every cell to its end, not only those whose first updates changed"
    add("--whole", action="store_true", help=whole)
    return run_upgrade(parse_options(parser, arguments))
