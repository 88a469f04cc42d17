"""The command `tunegrid`: `tunegrid NAME ...` runs one; `tunegrid NAME --help` describes it."""

import sys

from tunegrid.commands.cli import Program

COMMANDS = {
    "run": "run the suite from any folder: `tunegrid run -m quick`; all options are pytest's",
    "gate": "is a run worse than another? a verdict for every cell; --exact lists other scores",
    "audit": "re-check a saved run: impossible scores, copied results, failed audits",
    "compare": "which method, on which task, at what cost: fronts, and groups that cannot be told apart",
    "page": "a run as one HTML file, beside older runs",
    "export": "runs as one table, for pandas or DuckDB",
    "merge": "make one run of several, as of shards or a CI matrix, or of a killed session's journal",
    "plan": "how long the full grid takes on so many GPUs, in how much memory, at what price",
    "bisect": "find the release of a library, or the commit, that made cells worse",
    "baseline": "make a baseline of complete, clean, passed runs, one per seed",
    "cache": "what this machine keeps between runs, by kind and size; --prune removes the oldest",
}
IN_NOTES = "what it found stands in the notes of version 0.13, in reports/CHANGELOG.md"
FORMER = {
    "numerics": "write `tunegrid gate --numerics --on numerics`",
    "scores": "write `tunegrid gate --exact`",
    "finish": "write `tunegrid merge --journal -o RUN.json`, or `pytest --resume` to go on",
    "measure": "write `python -m tunegrid.lab measure`",
    "calibrate": "write `python -m tunegrid.lab calibrate`",
    "power": "write `python -m tunegrid.lab power`",
    "sees": "write `python -m tunegrid.lab sensitivity`",
    "silence": "write `python -m tunegrid.lab false_alarms`",
    "schema": "write `pytest lib/tunegrid/tests --write-schema -k committed_schema`",
    "overhead": IN_NOTES,
    "scaling": IN_NOTES,
    "profile": IN_NOTES,
}

main = Program(name="tunegrid", package="tunegrid.commands", commands=COMMANDS, former=FORMER).main

if __name__ == "__main__":
    sys.exit(main())
