"""Which method, on which task, at what cost? `tunegrid compare RUN.json [RUN2.json ...]` sets methods beside each other.

For every task and backbone: the main score with its interval, trained bytes, peak memory and seconds of training, which methods
are on the Pareto front of these, and which cannot be told apart. Several runs count as one: they may hold other methods, or
other seeds of the same ones.
"""

import argparse
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.results.compare import FORMATS, compared
from tunegrid.results.files import read_list
from tunegrid.results.noise import load_noise


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid compare", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--format", choices=FORMATS, default="text")
    options = parser.parse_args(arguments)
    try:
        comparisons = compared({path: read_list(path) for path in options.runs}, load_noise())
    except InputError as error:
        parser.error(str(error))
    print(FORMATS[options.format](comparisons))
    return 0
