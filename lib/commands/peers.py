"""Is our loop faster than what people use? `python -m lib peers FILE [FILE ...]` prints what `pytest -m peers` measured.

Below the table stand the goals. A goal that does not hold is a finding, not an error: the exit code is 0. Several files hold
different cells, measured under the same conditions, and are one table; `-o FILE` saves it.
"""

import argparse
from pathlib import Path

from lib.errors import InputError
from lib.results.peers import goals, heading, joined, load, save, table


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the goals; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib peers", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="FILE", help="what --peers-json named")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="save all cells as one file")
    options = parser.parse_args(arguments)
    try:
        run = joined({path: load(path) for path in options.runs})
        if options.output:
            save(run, options.output)
    except InputError as error:
        parser.error(str(error))
    print(heading(run), *table(run), *goals(run), sep="\n")
    return 0
