"""The command `tunegrid`: `tunegrid NAME ...` runs one; `tunegrid NAME --help` describes it."""

import sys

from tunegrid.commands.cli import Program

COMMANDS = {
    "run": "run the suite from any folder: `tunegrid run -m quick`; all options are pytest's",
    "gate": "is a run worse than another? a verdict for every cell; --exact lists other scores",
    "audit": "re-check a saved run: impossible scores, copied results, failed audits",
    "compare": "which method, on which task, at what cost: fronts, and groups that cannot be told apart",
    "answer": "which method for my task, what the study claims, and what cannot be told, as a page",
    "new": "a file to start from: a task, method or backbone of your own that runs at once",
    "calibrate": "bounds for cells of your own: trains them with a few seeds",
    "page": "a run as one HTML file, beside older runs",
    "export": "runs as one table, for pandas or DuckDB",
    "plot": "a run's charts as SVG and PNG, and its tables in LaTeX and Markdown, for a paper",
    "merge": "make one run of several, as of shards or a CI matrix, or of a killed session's journal",
    "plan": "how long the full grid takes on so many GPUs, in how much memory, at what price",
    "upgrade": "can I upgrade a library? the cells before and after, and what changed",
    "bisect": "find the release of a library, or the commit, that made cells worse",
    "tune": "search learning rate and LoRA rank on validation rows: how far is a recipe from best?",
    "path": "what lies between two saved models, an adapter's other scales, the mean of seeds",
    "distil": "does a teacher help? trains saved cells anew, beside what they scored without one",
    "speed": "did training become slower, or take more memory? two environments take turns",
    "baseline": "make a baseline of complete, clean, passed runs, one per seed",
    "cells": "which cells run a file of a library: what to test first after a change",
    "cache": "what this machine keeps between runs, by kind and size; --prune removes the oldest",
}
IN_NOTES = "what it found stands in the notes of version 0.13, in reports/CHANGELOG.md"
FORMER = {
    "numerics": "write `tunegrid gate --numerics --on numerics`",
    "scores": "write `tunegrid gate --exact`",
    "finish": "write `tunegrid merge --journal -o RUN.json`, or `pytest --resume` to go on",
    "measure": "write `python -m tunegrid.lab measure`",
    "power": "write `python -m tunegrid.lab power`",
    "sees": "write `python -m tunegrid.lab sensitivity`",
    "silence": "write `python -m tunegrid.lab false_alarms`",
    "schema": "write `tunegrid export --schema`",
    "overhead": IN_NOTES,
    "scaling": IN_NOTES,
    "profile": IN_NOTES,
}

main = Program(name="tunegrid", package="tunegrid.commands", commands=COMMANDS, former=FORMER).main

if __name__ == "__main__":
    sys.exit(main())
