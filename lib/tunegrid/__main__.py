"""The command `tunegrid`: `tunegrid NAME ...` runs one; `tunegrid NAME --help` describes it."""

import sys

from tunegrid.commands.cli import Program

COMMANDS = {
    "run": "run the suite from any folder: `tunegrid run -m quick`; all options are pytest's",
    "gate": "is a run worse than another? a verdict for every cell; --exact lists other scores",
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
# Commands of versions 0.16 and 0.17 that are no more, and what to do instead.
FORMER = {
    "answer": "write `tunegrid compare RUN.json`",
    "audit": "`tunegrid compare RUN.json` says which audits failed and what is not like for like; every command that reads a "
    "run refuses one that contradicts itself or its rows",
    "baseline": "write `tunegrid merge RUN.json ... --baseline -o TO.json`",
    "cache": "`du -sh .cache/*` shows what is kept; delete .cache to free it",
    "cells": "run `pytest -m quick`: it takes two minutes",
    "distil": "version 0.16 was the last with it",
    "path": "version 0.16 was the last with it",
    "plan": "`pytest -m full --list-cells` lists the cells with batch, precision and tokens",
    "plot": "`tunegrid page` draws charts, `tunegrid compare --format latex` prints tables, "
    "`tunegrid export` writes figures for your own plots",
    "tune": "benchmarks/guides/tune-a-recipe.md has a script with Optuna that does it",
}

main = Program(name="tunegrid", package="tunegrid.commands", commands=COMMANDS, former=FORMER).main

if __name__ == "__main__":
    sys.exit(main())
