"""A run as one HTML file: `tunegrid page RUN.json [OLDER.json ...] -o PAGE.html`.

The first older run is the one to compare with, as the gate does; all of them make the history. Nothing on the page needs a
network. With --screenshot FILE.png also a picture of its top; that needs Chromium.
"""

import argparse
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.page.render import screenshot, write
from tunegrid.page.runs import read_page_run
from tunegrid.page.view import page_of
from tunegrid.terminal import say


def main(arguments: list[str] | None = None) -> int:
    """Write the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid page", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN.json")
    parser.add_argument("older", type=Path, nargs="*", metavar="OLDER.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PAGE.html")
    parser.add_argument("--profile", metavar="NAME", help="of a run of several profiles, the one to show")
    parser.add_argument("--screenshot", type=Path, metavar="FILE.png")
    options = parser.parse_args(arguments)
    try:
        run = read_page_run(options.run, options.profile)
        older = [read_page_run(path, run.profile) for path in options.older]
        count = write(page_of(run, older), options.output)
        if options.screenshot:
            screenshot(options.output, options.screenshot)
    except InputError as error:
        refuse(parser, error)
    say(f"wrote {options.output}: {len(run.by_cell)} cells, {count / 1e6:.2f} MB")
    return 0
