"""Merge the runs of a CI matrix: `python -m lib merge A.json B.json -o C.json`.

Two files that hold the same cell, profile and seed are a conflict, unless they hold the same record: then it is taken once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.errors import InputError
from lib.results.examples import keep_beside
from lib.results.files import Row, current, is_cell, load, read_list, save


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """The first file with the rows of all, ordered by name; raises InputError for a conflict."""
    rows: dict[tuple[str, int | None], tuple[Row, Path]] = {}
    for path in paths:
        for row in load(path)["benchmarks"]:
            seed, name = None, str(row.get("fullname") or row.get("name"))
            if is_cell(row["extra_info"]):
                row, record = current(row, str(path))
                seed = record.seeds.seed
                name = name.replace(f"-seed{seed}]", "]")  # with --seeds, a test's id says it
            if (name, seed) in rows and rows[name, seed][0]["extra_info"] != row["extra_info"]:
                raise InputError(f"{name} with seed {seed} is in {rows[name, seed][1]} and in {path}, with different results")
            rows.setdefault((name, seed), (row, path))
    ordered = [row for _, (row, _) in sorted(rows.items(), key=lambda item: str(item[0]))]
    return load(paths[0]) | {"benchmarks": ordered}


def main(arguments: list[str] | None = None) -> int:
    """Write the merged file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib merge", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.json")
    options = parser.parse_args(arguments)
    try:
        run = merged(options.runs)
        for path in options.runs:
            keep_beside(read_list(path), options.output, path)
        save(run, options.output)
    except InputError as error:
        parser.error(str(error))
    print(f"wrote {options.output}: {len(run['benchmarks'])} rows of {len(options.runs)} runs")
    return 0
