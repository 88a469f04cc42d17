"""Make a run's JSON from the journal of the last session, even if it was killed: `python -m lib finish`."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from lib.errors import InputError
from lib.machine import cpu_name, gpus, versions
from lib.results.examples import keep_beside
from lib.results.files import current, save
from lib.results.journal import latest, read

OUT = Path(__file__).parents[2] / "reports" / "partial.json"


def finish(journal: Path, out: Path) -> int:
    """Write the journal's rows as a run; return how many cells it has. Raises InputError where it has none."""
    cells = [current(row, str(journal)) for _, row in read(journal)]
    if not cells:
        raise InputError(f"{journal} holds no finished cell")
    run = {
        "machine_info": {"tunegrid": {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}},
        "commit_info": {"dirty": None},  # a journal does not know
        "benchmarks": sorted((row for row, _ in cells), key=lambda row: str(row.get("fullname"))),
        "datetime": datetime.now(UTC).isoformat(),
        "version": "journal",
    }
    save(run, out)
    keep_beside([record for _, record in cells], out)
    return len(cells)


def main(arguments: list[str] | None = None) -> int:
    """Write the run; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib finish", description=__doc__)
    parser.add_argument("--journal", type=Path, metavar="FILE", help="default: the newest in .cache/journal")
    parser.add_argument("-o", "--output", type=Path, default=OUT, metavar="OUT.json", help="default: reports/partial.json")
    options = parser.parse_args(arguments)
    try:
        journal = options.journal or latest()
        count = finish(journal, options.output)
    except (InputError, OSError) as error:
        parser.error(str(error))
    print(f"wrote {options.output}: {count} finished cells of {journal.name}")
    return 0
