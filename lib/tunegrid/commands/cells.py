"""Which cells does a change touch? `tunegrid cells --touched-by peft/tuners/lora/layer.py` prints their ids, for `--cells`.

A trace of the quick cells is committed and knows which of them call a function of a file. A path may be that of a checkout, as
src/peft/tuners/lora/layer.py, or of a folder. `git diff --name-only main | tunegrid cells --touched-by -` reads paths from a
pipe. Exit code 1 where no cell runs any of the files.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.machine import versions
from tunegrid.results.touched import Touched, read
from tunegrid.terminal import say


def remarks(touched: Touched, paths: Sequence[str]) -> Iterator[str]:
    """What one should know of the answer: files that no cell runs, and libraries that are others by now."""
    for path in paths:
        if path.endswith(".py") and not touched.matches(path):
            yield f"{path}: no quick cell calls a function of it"
    known = versions()
    libraries = {name.split("/")[0] for path in paths for name in touched.matches(path)}
    for name in sorted(libraries):
        if known.get(name) != touched.versions.get(name):
            yield f"traced with {name} {touched.versions.get(name)}, and here is {known.get(name)}: files may have moved"


def main(arguments: list[str] | None = None) -> int:
    """Print the cells; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid cells", description=__doc__)
    parser.add_argument(
        "--touched-by", nargs="+", required=True, metavar="PATH", help="files or folders of libraries; - reads them"
    )
    options = parser.parse_args(arguments)
    paths = sys.stdin.read().split() if options.touched_by == ["-"] else options.touched_by
    try:
        touched = read()
    except InputError as error:
        refuse(parser, error)
    told, cells = [*remarks(touched, paths)], touched.by(paths)
    for sentence in told or ([] if cells else ["none of these paths is a file that a quick cell runs"]):
        say(sentence, error=True)
    say(",".join(cell for cell in touched.cells if cell in cells))
    return 0 if cells else 1
