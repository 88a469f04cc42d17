"""The command line: `tunegrid NAME ...` runs a command; `tunegrid NAME --help` describes it."""

import sys
from functools import partial

from tunegrid.commands.cli import program
from tunegrid.libraries import prepare_libraries

COMMANDS = {
    "run": "run the suite from any folder: `tunegrid run -m quick`; all options are pytest's",
    "gate": "is a run worse than another? a verdict for every cell",
    "compare": (
        "which method is best, on which task, at what cost; the Pareto front; undecided pairs"
    ),
    "new": (
        "write a starter file: your own task, method, backbone, metric or instrument; "
        "it runs at once"
    ),
    "calibrate": "measure bounds for your own cells: train them with a few seeds",
    "fetch": "download weights and rows of full-size cells, for runs without a network",
    "page": "write a run as one HTML file, next to older runs",
    "export": "write runs as one table, for pandas or DuckDB",
    "merge": "make one run of several, or of a killed session's journal; --baseline for a baseline",
    "upgrade": "can I upgrade a library? runs the cells before and after, and says what changed",
    "bisect": "find the release of a library, or the commit, that made cells worse",
    "history": (
        "what did each release of a library change? runs the cells with all of them, "
        "and tabulates it"
    ),
    "versions": "which packages changed, between two environments or since a run?",
    "speed": "did training become slower, or take more memory? compares two environments in turns",
}

prepare_libraries()
main = partial(program, "tunegrid", "tunegrid.commands", COMMANDS)

if __name__ == "__main__":
    sys.exit(main())
