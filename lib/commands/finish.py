"""Saved runs by hand. `python -m lib.results finish` makes a run's JSON of the last session's journal, killed or not."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from lib.errors import InputError
from lib.machine import cpu_name, gpus, versions
from lib.results.examples import keep_beside
from lib.results.files import save
from lib.results.journal import latest, read

OUT = Path(__file__).parents[2] / "reports" / "partial.json"


def finish(journal: Path, out: Path) -> int:
    """Write the journal's rows as a run; return how many cells it has."""
    rows = [row for _, row in read(journal)]
    if not rows:
        raise InputError(f"{journal} holds no finished cell")
    run = {
        "machine_info": {"tunegrid": {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}},
        "commit_info": {"dirty": None},  # a journal does not know
        "benchmarks": sorted(rows, key=lambda row: row["fullname"]),
        "datetime": datetime.now(UTC).isoformat(),
        "version": "journal",
    }
    save(run, out)
    keep_beside([row["extra_info"] for row in rows], out)
    return len(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.results", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("finish", help="make a run's JSON of a journal")
    command.add_argument("--journal", type=Path, metavar="FILE", help="default: the newest in .cache/journal")
    command.add_argument("-o", "--output", type=Path, default=OUT, metavar="OUT.json", help="default: reports/partial.json")
    options = parser.parse_args(arguments)
    try:
        journal = options.journal or latest()
        count = finish(journal, options.output)
    except (InputError, OSError) as error:
        parser.error(str(error))
    print(f"wrote {options.output}: {count} finished cells of {journal.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
