"""Is a run worse than another? `python -m lib gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

Exit code 1 if a score or a memory figure is worse or a cell is missing; with --strict also if a score cannot be told, with --on
also for speed; else 0. In GitHub Actions the table goes to the step summary too.
"""

import argparse
from pathlib import Path

from lib.errors import InputError
from lib.results.gate_report import FORMATS, write_step_summary
from lib.results.gates import FAILED_BY, KINDS, failing, gate, kinds_of, read_run


def main(arguments: list[str] | None = None) -> int:
    """Print the verdicts; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib gate", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the baseline")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the run to judge")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--strict", action="store_true", help="exit 1 also where a score cannot be told")
    parser.add_argument("--on", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"of {','.join(KINDS)}: what counts")
    options = parser.parse_args(arguments)
    try:
        kinds = kinds_of(options.on)
        judged = gate(read_run(options.old), read_run(options.new))
    except InputError as error:
        parser.error(str(error))
    print(FORMATS[options.format](judged, kinds))
    write_step_summary(judged, kinds)
    return int(bool(failing(judged, kinds, strict=options.strict)))
