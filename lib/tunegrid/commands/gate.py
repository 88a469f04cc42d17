"""Is a run worse than another? `tunegrid gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

Exit code 1 if a score or a memory figure is worse, a cell is missing, or a cell of the new run did not pass; with --on also for
changed numerics or for speed. Else 6 if no main score could be tested; with cannot-tell in
--on also if any main score cannot be told. Else 0. In GitHub Actions the answer and the table go to the step summary too.
With --exact nothing is judged: every difference between the scores of the two is listed; exit code 1 if there is any.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.files import SavedRun, read_saved
from tunegrid.results.flips import flips
from tunegrid.results.gate import Run, gate, paired
from tunegrid.results.judgements import COUNTED, FAILED_BY
from tunegrid.results.report import Section, text
from tunegrid.results.summary import annotate, gate_section, summary, table, write_step_summary
from tunegrid.results.verdict import kinds_of, verdict_of
from tunegrid.terminal import say


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="tunegrid gate", description=__doc__)
    line.add_argument("old", type=Path, metavar="OLD.json", help="the baseline")
    line.add_argument("new", type=Path, metavar="NEW.json", help="the run to judge")
    line.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    line.add_argument("--on", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"of {','.join(COUNTED)}: what counts")
    line.add_argument("--numerics", action="store_true", help="also print what verdicts on numerics rest on")
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
    if options.numerics and options.format != "text":
        line.error("--numerics prints text: leave out --format")
    if options.show_flips and options.format == "json":
        line.error("--show-flips prints text or Markdown: give another --format")
    try:
        old, new = read_saved(options.old), read_saved(options.new)
        return exact(old.records, new.records) if options.exact else judge(old, new, options)
    except InputError as error:
        refuse(line, error)


def exact(old: Sequence[Record], new: Sequence[Record]) -> int:
    """Print every difference between scores; return whether there is one."""
    lines = differences(old, new)
    say("\n".join(lines or [identical(old, new)]))
    return int(bool(lines))


def judge(old: SavedRun, new: SavedRun, options: argparse.Namespace) -> int:
    """Print the verdicts and the answer; return its exit code."""
    kinds, before, after = kinds_of(options.on), Run.of(old.records, old.path), Run.of(new.records, new.path)
    judged, files = gate(before, after), (f"{old.path}", f"{new.path}")
    names = {"baseline": old.path.name, "command": new.command}
    verdict = verdict_of(new.records, judged, kinds, before=old.records, files=files, **names)
    listed = flips(paired(before, after), judged, options.show_flips) if options.show_flips else []
    words = summary(verdict, judged, flips=listed)
    if options.format == "json":
        say(json.dumps([asdict(judgement) for judgement in judged], indent=1))
    elif options.format == "markdown":
        say(words)
    else:
        rows = [{"cell": j.cell, "numerics": j.verdict, "what": j.detail} for j in judged if j.kind == "numerics"]
        sections = [table(dict.fromkeys(("cell", "numerics", "what"), ""), rows)] if options.numerics else []
        sections += [gate_section(judged, verdict.failing), *listed, Section(sentences=verdict.sentences)]
        say(text(sections))
        annotate(verdict)
    write_step_summary(words)
    return verdict.exit_code


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
