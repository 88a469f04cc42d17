"""Is a run worse than another? `tunegrid gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

Exit code 1 if a score or a memory figure is worse, a cell is missing, or a cell of the new run did not pass; with --on also for
changed numerics, for speed, or for what is too good to be true. Else 6 if no main score could be tested; with cannot-tell in
--on also if any main score cannot be told. Else 0. In GitHub Actions the answer and the table go to the step summary too.
"""

import argparse
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.results.answer import answer_of
from tunegrid.results.files import read_list
from tunegrid.results.gate_report import FORMATS, write_step_summary
from tunegrid.results.gates import COUNTED, FAILED_BY, Run, gate, kinds_of, read_run


def main(arguments: list[str] | None = None) -> int:
    """Print the verdicts and the answer; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid gate", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the baseline")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the run to judge")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--strict", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--on", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"of {','.join(COUNTED)}: what counts")
    options = parser.parse_args(arguments)
    if options.strict:
        parser.error("--strict was replaced: write --on=quality,memory,cannot-tell")
    try:
        kinds, records = kinds_of(options.on), read_list(options.new)
        judged = gate(read_run(options.old), Run.of(records, options.new))
    except InputError as error:
        parser.error(str(error))
    answer = answer_of(records, judged, kinds, baseline=options.old.name)
    print(FORMATS[options.format](judged, answer))
    write_step_summary(judged, answer)
    return answer.exit_code
