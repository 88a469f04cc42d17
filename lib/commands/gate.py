"""Is a run worse than another? `python -m lib.gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

Exit code 1 where a score or a memory figure is worse or a cell is missing, with --strict also where it cannot be told, with
--on also where speed is worse; 0 otherwise. In GitHub Actions the table goes to the step summary too.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.errors import InputError
from lib.results.gate_report import FORMATS, as_markdown
from lib.results.gates import FAILED_BY, KINDS, Judgement, failing, gate, read_run


def main(arguments: list[str] | None = None) -> int:
    """Print the verdicts; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.gate", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the baseline")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the run to judge")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--strict", action="store_true", help="exit 1 also where a score cannot be told")
    parser.add_argument(
        "--on", type=kinds_of, default=FAILED_BY, metavar="KIND,KIND", help="of quality,memory,speed: what counts"
    )
    options = parser.parse_args(arguments)
    try:
        judged = gate(read_run(options.old), read_run(options.new))
    except InputError as error:
        parser.error(str(error))
    print(FORMATS[options.format](judged, options.on))
    write_step_summary(judged, options.on)
    return int(bool(failing(judged, options.on, strict=options.strict)))


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds of figures that count; raises InputError for one that is none."""
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"{kind!r} is no kind of figure; give some of {','.join(KINDS)}")
    return kinds


def write_step_summary(judged: Sequence[Judgement], kinds: Sequence[str]) -> None:
    """Append the verdicts to GitHub's step summary, where there is one."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if target:
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(as_markdown(judged, kinds) + "\n")


if __name__ == "__main__":
    sys.exit(main())
