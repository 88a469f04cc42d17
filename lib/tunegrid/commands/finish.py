"""Make a run's JSON from the journal of the last session, even if it was killed: `tunegrid finish`.

Cells are audited beside each other, as where a session ends; the exit code is 1 where that shows a fault.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.machine import cpu_name, gpus, versions
from tunegrid.results.files import current
from tunegrid.results.journal import latest, read
from tunegrid.results.writing import FinishedRun

OUT = ROOT / "reports" / "partial.json"


def finish(journal: Path, out: Path) -> FinishedRun[int]:
    """Write the journal's rows as a run; return it. Raises InputError where there is none, and where the disk has no room."""
    cells = dict(enumerate(current(row, str(journal)) for _, row in read(journal)))
    if not cells:
        raise InputError(f"{journal} holds no finished cell")
    finished = FinishedRun({place: record for place, (_, record) in cells.items()})
    run = {
        "machine_info": {"tunegrid": {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}},
        "commit_info": {"dirty": None},  # a journal does not know
        "benchmarks": finished.rows({place: row for place, (row, _) in cells.items()}),
        "datetime": datetime.now(UTC).isoformat(),
        "version": "journal",
    }
    finished.save(run, out)
    return finished


def main(arguments: list[str] | None = None) -> int:
    """Write the run; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid finish", description=__doc__)
    parser.add_argument("--journal", type=Path, metavar="FILE", help="default: the newest in .cache/journal")
    parser.add_argument("-o", "--output", type=Path, default=OUT, metavar="OUT.json", help="default: reports/partial.json")
    options = parser.parse_args(arguments)
    try:
        journal = options.journal or latest()
        finished = finish(journal, options.output)
    except (InputError, OSError) as error:
        parser.error(str(error))
    for line in finished.lines():
        print(line.text)
    print(f"wrote {options.output}: {len(finished.records)} finished cells of {journal.name}")
    return 1 if finished.contradicted else 0
