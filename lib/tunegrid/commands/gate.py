"""Is a run worse than another? `tunegrid gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

Exit code 1 if a score or a memory figure is worse, a cell is missing, or a cell of the new run did not pass; with --on also for
changed numerics, for speed, or for what is too good to be true. Else 6 if no main score could be tested; with cannot-tell in
--on also if any main score cannot be told. Else 0. In GitHub Actions the answer and the table go to the step summary too.
With --exact nothing is judged: every difference between the scores of the two is listed; exit code 1 if there is any.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.answer import answer_of
from tunegrid.results.cell_answer import annotate
from tunegrid.results.files import read_list
from tunegrid.results.flips import flips
from tunegrid.results.gate import Run, furthest, gate, paired
from tunegrid.results.gate_report import FORMATS, Report, numerics_table, write_step_summary
from tunegrid.results.outcomes import COUNTED, FAILED_BY, kinds_of
from tunegrid.terminal import say


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="tunegrid gate", description=__doc__)
    line.add_argument("old", type=Path, metavar="OLD.json", help="the baseline")
    line.add_argument("new", type=Path, metavar="NEW.json", help="the run to judge")
    line.add_argument("--format", choices=FORMATS, default="text")
    line.add_argument("--policy", help=argparse.SUPPRESS)
    line.add_argument("--on", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"of {','.join(COUNTED)}: what counts")
    line.add_argument(
        "--numerics",
        action="store_true",
        help="also print what verdicts on numerics rest on, and how far figures lie apart",
    )
    line.add_argument("--show-flips", type=_rows, metavar="N", help="list up to N test rows of each cell that changed")
    line.add_argument("--exact", action="store_true", help="only list the scores that are not the same to the last digit")
    return line


def _rows(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Print the verdicts and the answer; return the exit code."""
    line = parser()
    options = line.parse_args(arguments)
    if options.policy:
        line.error("--policy is gone: --on=KIND,KIND says what fails a run")
    if options.numerics and options.format != "text":
        line.error("--numerics prints text: leave out --format")
    if options.show_flips and options.format == "json":
        line.error("--show-flips prints text or Markdown: give another --format")
    try:
        old, new = read_list(options.old), read_list(options.new)
        return exact(old, new) if options.exact else judge(old, new, options)
    except InputError as error:
        refuse(line, error)


def exact(old: Sequence[Record], new: Sequence[Record]) -> int:
    """Print every difference between scores; return whether there is one."""
    lines = differences(old, new)
    say("\n".join(lines or [identical(old, new)]))
    return int(bool(lines))


def judge(old: Sequence[Record], new: Sequence[Record], options: argparse.Namespace) -> int:
    """Print the verdicts and the answer; return the answer's exit code."""
    kinds, before, after = kinds_of(options.on), Run.of(old, options.old), Run.of(new, options.new)
    judged = gate(before, after)
    answer = answer_of(new, judged, kinds, baseline=options.old.name, before=old)
    listed = flips(paired(before, after), judged, options.show_flips) if options.show_flips else ()
    report = Report(judged=judged, answer=answer, flips=listed)
    if options.numerics:
        say("\n".join(numerics_table(judged, furthest(before, after))))
    say(FORMATS[options.format](report))
    if options.format == "text":
        annotate(answer, new)
    write_step_summary(report)
    return answer.exit_code


# Whether scores are the same to the last digit


def named(records: Sequence[Record]) -> dict[str, Record]:
    """Records by cell, and by seed where a cell has several."""
    several = len({record.seeds.seed for record in records}) > 1
    return {record.cell + (f" seed {record.seeds.seed}" if several else ""): record for record in records}


def differences(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """A line for every cell that only one run has, and for every score that is not the same."""
    first, second = named(old), named(new)
    lines = [f"{cell}: only in one of the two" for cell in sorted(first.keys() ^ second.keys())]
    for cell in sorted(first.keys() & second.keys()):
        ours, theirs = first[cell].scores, second[cell].scores
        lines += [
            f"{cell}: {name} {ours.get(name)} and {theirs.get(name)}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
    return lines


def identical(old: Sequence[Record], new: Sequence[Record]) -> str:
    """What is said of two runs without a difference."""
    count, cells = sum(len(record.scores) for record in old), len({record.cell for record in old})
    peak = max((record.peak_gib or 0.0 for record in (*old, *new)), default=0.0)
    return f"identical: {count} scores of {cells} cells; highest memory peak {peak:.2f} GiB"
