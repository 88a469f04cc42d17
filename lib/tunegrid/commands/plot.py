"""The charts of a run for a paper: `tunegrid plot RUN.json [RUN2.json ...] -o DIR` writes each as SVG and PNG, and
the tables of `tunegrid compare` as DIR/methods.tex and DIR/methods.md.

Charts and tables hold the figures of `tunegrid page` and `tunegrid compare`. Several runs count as one, as they do there: they
may hold other methods, or other seeds of the same ones. Needs matplotlib: pip install -e '.[plot]'.
"""

import argparse
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.page import figures
from tunegrid.page.runs import together
from tunegrid.page.view import Page, page_of
from tunegrid.results import compare, sizes
from tunegrid.results.files import read_saved
from tunegrid.terminal import say

TABLES = {"latex": "methods.tex", "markdown": "methods.md"}


def write_tables(page: Page, folder: Path) -> list[Path]:
    """The tables of `tunegrid compare`; none where no cell has a score."""
    if not any(entry.scores for one in page.comparisons for entry in one.entries):
        return []
    written = []
    for name, file in TABLES.items():
        parts = (compare.FORMATS[name](page.comparisons), sizes.FORMATS[name](page.comparisons))
        (folder / file).write_text("\n".join(filter(None, parts)) + "\n", encoding="utf-8")
        written.append(folder / file)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Write charts and tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid plot", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--profile", metavar="NAME", help="of runs of several profiles, the one to draw")
    options = parser.parse_args(arguments)
    try:
        page = page_of(together([read_saved(path) for path in options.runs], options.profile))
        drawn = figures.write(page, options.output)
        tables = write_tables(page, options.output)
    except InputError as error:
        parser.error(str(error))
    for remark in page.remarks:
        say(remark, error=True)
    say(f"wrote {options.output}: {len(drawn) // 2} charts as SVG and PNG, {len(tables)} tables")
    return 0
