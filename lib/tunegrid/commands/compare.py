"""Which method, on which task, at what cost? `tunegrid compare RUN.json [RUN2.json ...]` sets methods beside each other.

For every task and backbone: the main score with its interval, trained bytes, peak memory and seconds of training, which methods
are on the Pareto front of these, and which cannot be told apart. Where runs hold several sizes of one family, a last table sets
each method's gap to full fine-tuning against size. Several runs count as one: they may hold other methods, or other seeds of
the same ones.
"""

import argparse
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.results import sizes
from tunegrid.results.compare import FORMATS, compared
from tunegrid.results.files import read_list
from tunegrid.results.noise import load_noise
from tunegrid.terminal import say


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid compare", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--format", choices=FORMATS, default="text")
    options = parser.parse_args(arguments)
    try:
        comparisons = compared({path: read_list(path) for path in options.runs}, load_noise())
    except InputError as error:
        refuse(parser, error)
    say("\n".join(filter(None, (FORMATS[options.format](comparisons), sizes.FORMATS[options.format](comparisons)))))
    return 0
