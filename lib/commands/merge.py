"""Merges runs of a CI matrix: `python -m lib.merge A.json B.json -o C.json`.

Two files that hold the same cell, profile and seed are a conflict, unless they hold the same record: then it is taken once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.errors import InputError
from lib.results.examples import keep_beside
from lib.results.files import load, read_list, save


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """The first file with the rows of all, ordered by name; raises InputError for a conflict."""
    rows: dict[tuple[Any, ...], tuple[dict[str, Any], Path]] = {}
    for path in paths:
        read_list(path)  # refuses a file without cells
        for row in load(path)["benchmarks"]:
            record = row["extra_info"]
            key = (row.get("fullname", row["name"]), (record.get("seeds") or {}).get("seed"))
            if key in rows and rows[key][0]["extra_info"] != record:
                raise InputError(f"{key[0]} with seed {key[1]} is in {rows[key][1]} and in {path}, with different results")
            rows.setdefault(key, (row, path))
    ordered = [row for _, (row, _) in sorted(rows.items(), key=lambda item: str(item[0]))]
    return load(paths[0]) | {"benchmarks": ordered}


def main(arguments: list[str] | None = None) -> int:
    """Write the merged file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.merge", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.json")
    options = parser.parse_args(arguments)
    try:
        found = merged(options.runs)
    except InputError as error:
        parser.error(str(error))
    for path in options.runs:
        keep_beside(read_list(path), options.output, path)
    save(found, options.output)
    print(f"wrote {options.output}: {len(found['benchmarks'])} rows of {len(options.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
