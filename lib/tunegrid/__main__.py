"""The command `tunegrid`: `tunegrid NAME ...` runs one; `tunegrid NAME --help` describes it."""

import sys

from tunegrid.commands.cli import Program

COMMANDS = {
    "run": "run the suite from any folder: `tunegrid run -m quick`; all options are pytest's",
    "gate": "is a run worse than another? a verdict for every cell; --exact lists other scores",
    "audit": "re-check a saved run: impossible scores, copied results, failed audits",
    "compare": "which method, on which task, at what cost: fronts, and groups that cannot be told apart",
    "new": "a file to start from: a task, method or backbone of your own that runs at once",
    "calibrate": "bounds for cells of your own: trains them with a few seeds",
    "page": "a run as one HTML file, beside older runs",
    "export": "runs as one table, for pandas or DuckDB",
    "merge": "make one run of several, as of shards or a CI matrix, or of a killed session's journal",
    "upgrade": "can I upgrade a library? the cells before and after, and what changed",
    "bisect": "find the release of a library, or the commit, that made cells worse",
    "speed": "did training become slower, or take more memory? two environments take turns",
    "baseline": "make a baseline of complete, clean, passed runs, one per seed",
}
FORMER = {
    "tune": "benchmarks/guides/tune-a-recipe.md has a script with Optuna that does it",
    "path": "version 0.16 was the last with it",
    "distil": "version 0.16 was the last with it",
    "answer": "write `tunegrid compare RUN.json`",
    "plan": "`pytest -m full --list-cells` prints an estimate for each cell",
    "cells": "run `pytest -m quick`: it takes two minutes",
    "cache": "`du -sh .cache/*` shows what is kept; delete .cache to free it",
    "plot": "`tunegrid page` draws charts, `tunegrid compare --format latex` prints tables, "
    "`tunegrid export` writes figures for your own plots",
}

main = Program(name="tunegrid", package="tunegrid.commands", commands=COMMANDS, former=FORMER).main

if __name__ == "__main__":
    sys.exit(main())
