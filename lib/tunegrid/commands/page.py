"""Writes a run as one HTML file: `tunegrid page RUN.json [OLDER.json ...] -o PAGE.html`.

`--charts DIR` writes its charts for papers. The page compares the run with the first older run, as
the gate does, and shows all older runs as its history. The page needs no network.
"""

import argparse
from pathlib import Path

from tunegrid.terminal import say


def main(arguments: list[str] | None = None) -> int:
    """Write the page, the charts or both; return the exit code.

    Raises InputError if a run cannot be read or shown, or a file cannot be written.
    """
    parser = argparse.ArgumentParser(prog="tunegrid page", description=__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN.json")
    add("older", type=Path, nargs="*", metavar="OLDER.json")
    add("-o", "--output", type=Path, metavar="PAGE.html")
    add("--charts", type=Path, metavar="DIR", help="write each chart as SVG and PDF")
    add("--profile", metavar="NAME", help="the profile to show, if the run has several")
    options = parser.parse_args(arguments)
    if not (options.output or options.charts):
        parser.error("give -o PAGE.html for the page, or --charts DIR for its charts")
    # imports pandas, which --help does not need
    from tunegrid.page.render import write_charts, write_page
    from tunegrid.page.view import make_page, read_page_run

    run = read_page_run(options.run, options.profile)
    if run.doubt:
        say(run.warning)
    older_runs = [read_page_run(path, run.profile) for path in options.older]
    page = make_page(run, older_runs)
    if options.charts:
        count = write_charts(page, options.charts)
        say(f"wrote {count} charts to {options.charts}, each as SVG and PDF")
    if options.output:
        size = write_page(page, options.output)
        say(f"wrote {options.output}: {len(run.by_cell)} cells, {size / 1e6:.2f} MB")
    return 0
