"""Is a run worse than another? `python -m lib.gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

Exit code 1 where a score, a memory figure or a speed is worse or a cell is missing, with --strict also where a score cannot be
told; 0 otherwise. In GitHub Actions the table goes to the step summary too.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.errors import InputError
from lib.results.files import read_run
from lib.results.gates import Judgement, exit_code, gate
from lib.results.verdicts import FORMATS, as_markdown


def main(arguments: list[str] | None = None) -> int:
    """Print the verdicts; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.gate", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the baseline")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the run to judge")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--strict", action="store_true", help="exit 1 also where a score cannot be told")
    options = parser.parse_args(arguments)
    try:
        judged = gate(read_run(options.old), read_run(options.new))
    except InputError as error:
        parser.error(str(error))
    print(FORMATS[options.format](judged))
    write_step_summary(judged)
    return exit_code(judged, strict=options.strict)


def write_step_summary(judged: Sequence[Judgement]) -> None:
    """Append the verdicts to GitHub's step summary, where there is one."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if target:
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(as_markdown(judged) + "\n")


if __name__ == "__main__":
    sys.exit(main())
