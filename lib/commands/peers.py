"""Is our loop faster than what people use? `python -m lib peers FILE` prints what `pytest -m peers` measured, and the goals.

A goal that does not hold is a finding, not an error: the exit code is 0.
"""

import argparse
from pathlib import Path

from lib.errors import InputError
from lib.results.peers import goals, heading, load, table


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the goals; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib peers", description=__doc__)
    parser.add_argument("run", type=Path, metavar="FILE", help="what --peers-json named")
    options = parser.parse_args(arguments)
    try:
        run = load(options.run)
    except InputError as error:
        parser.error(str(error))
    print(heading(run), *table(run), *goals(run), sep="\n")
    return 0
