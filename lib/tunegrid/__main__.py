"""The command `tunegrid`: `tunegrid NAME ...` runs one; `tunegrid NAME --help` describes it."""

import sys
from functools import partial

from tunegrid.commands.cli import program

COMMANDS = {
    "run": "run the suite from any folder: `tunegrid run -m quick`; all options are pytest's",
    "gate": "is a run worse than another? a verdict for every cell",
    "compare": "which method, on which task, at what cost; the front, and what cannot be told apart",
    "new": "a file to start from: a task, method or backbone of your own that runs at once",
    "calibrate": "bounds for cells of your own: trains them with a few seeds",
    "page": "a run as one HTML file, beside older runs",
    "export": "runs as one table, for pandas or DuckDB",
    "merge": "make one run of several, or of a killed session's journal; a baseline with --baseline",
    "upgrade": "can I upgrade a library? the cells before and after, and what changed",
    "bisect": "find the release of a library, or the commit, that made cells worse",
    "speed": "did training become slower, or take more memory? two environments take turns",
}

main = partial(program, "tunegrid", "tunegrid.commands", COMMANDS)

if __name__ == "__main__":
    sys.exit(main())
