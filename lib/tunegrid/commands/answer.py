"""Which method for my task, and what cannot be told? `tunegrid answer RUN.json [RUN2.json ...]` says it as a page of Markdown.

The best method by task and backbone, at which memory, how robust and how calibrated it is, what it forgets and what it costs,
each sentence with its interval and the command behind it. Then the study's claims: each holds in these runs, does not hold, or
cannot be told. Several runs count as one: they may hold other methods or other seeds, or, as of `pytest -m shifted`, more on
the same ones. What was not measured is named with the command that measures it.
"""

import argparse
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.disk import write_whole
from tunegrid.errors import InputError
from tunegrid.results.choice import measured, page
from tunegrid.results.files import read_list
from tunegrid.results.noise import load_noise
from tunegrid.terminal import say, visible_lines


def _gib(text: str) -> float:
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory: expected GiB, as in 7.5")
    return gib


def main(arguments: list[str] | None = None) -> int:
    """Print or write the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid answer", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--task", metavar="TASK", help="only this one, as qa")
    parser.add_argument("--memory-gib", type=_gib, metavar="N", help="name the best method whose peak stays within N GiB, too")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.md", help="write the page there (default: print it)")
    options = parser.parse_args(arguments)
    try:
        runs = measured({path: read_list(path) for path in options.runs}, load_noise(), options.task)
        text = page(runs, task=options.task, gib=options.memory_gib)
        if options.output:
            write_whole(options.output, f"{visible_lines(text)}\n")
    except InputError as error:
        refuse(parser, error)
    say(f"wrote {options.output}" if options.output else text)
    return 0
