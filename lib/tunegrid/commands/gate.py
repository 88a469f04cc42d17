"""Is a run worse than another? `tunegrid gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

Exit code 1 if a score or a memory figure is worse, a cell is missing, or a cell of the new run did not pass; with `numerics` or
`speed` in --on also for these. Else 6 if numerics changed, tensors hold fewer bytes, cells have another recipe, nothing of a
kind in --on could be compared, or all cells were too short to judge. --on without `numerics` and `changed` leaves numerics
out; with `cannot-tell`, 6 also if any main score cannot be decided; 6 also if NEW.json is unsealed. Else 0. An unsealed
baseline is refused, and so is each file that was changed since it was written: exit code 2. In GitHub Actions the answer and
the table go to the step summary, too.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tunegrid.gate.judgements import COUNTED, DEFAULT_KINDS, parse_kinds
from tunegrid.report.summary import annotate, gate_section, summary, table, write_step_summary
from tunegrid.report.tables import Section, text
from tunegrid.report.verdict import Rank, run_verdict
from tunegrid.runs.files import SavedRun, read_saved
from tunegrid.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdicts and the answer; return the exit code. Raises InputError if a run cannot be read."""
    parser = argparse.ArgumentParser(prog="tunegrid gate", description=__doc__)
    add = parser.add_argument
    add("old", type=Path, metavar="OLD.json", help="the baseline")
    add("new", type=Path, metavar="NEW.json", help="the run to judge")
    add("--format", choices=("text", "markdown", "json"), default="text")
    add("--on", default=",".join(DEFAULT_KINDS), metavar="KIND,KIND", help=f"what counts: {','.join(COUNTED)}")
    add("--numerics", action="store_true", help="also print the evidence for verdicts on numerics; JSON always has it")
    options = parser.parse_args(arguments)
    return judge(read_saved(options.old), read_saved(options.new), options)


def judge(old: SavedRun, new: SavedRun, options: argparse.Namespace) -> int:
    """Print the verdicts and the answer; return its exit code."""
    from tunegrid.gate.gate import Run, gate  # which brings scipy

    kinds = parse_kinds(options.on)
    old.check_unchanged()
    new.check_unchanged()
    judgements = gate(Run.of_file(old), Run.of_file(new))
    files = f"{old.path}", f"{new.path}"
    given = ["tunegrid", "gate", *files]
    if options.numerics:
        given.append("--numerics")
    verdict = run_verdict(
        new.records,
        judgements,
        kinds,
        baseline=old.path.name,
        before=old.records,
        command=new.command,
        given=shlex.join(given),
        files=files,
    )
    rows = [{"cell": j.cell, "numerics": j.verdict, "what": j.detail} for j in judgements if j.kind == "numerics"]
    sections = [table(dict.fromkeys(("cell", "numerics", "what"), ""), rows)] if options.numerics else []
    words = summary(verdict, judgements, evidence=sections)
    warning = [f"{new.warning}."] if new.doubt else []
    words = "\n\n".join([*warning, words])
    if options.format == "json":
        for sentence in warning:
            say(sentence, error=True)
        say(json.dumps([asdict(judgement) for judgement in judgements], indent=1))
    elif options.format == "markdown":
        say(words)
    else:
        say(
            text(
                [
                    Section(sentences=warning),
                    *sections,
                    gate_section(judgements, verdict.failing),
                    Section(sentences=verdict.sentences),
                ]
            )
        )
        annotate(verdict)
    write_step_summary(words)
    return verdict.exit_code or (Rank.CANNOT_TELL.exit_code if new.doubt else 0)
