"""Makes a baseline: `python -m lib.baseline RUN.json [RUN.json ...] TO.json` takes complete, clean, passed runs, one a seed.

Refused are runs in which a cell failed, stopped or is missing, that shared their device, or whose commit had uncommitted
changes. Printed is what changes against the baseline that stood there.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.errors import InputError
from lib.grid.cells import CELL_IDS
from lib.results.examples import keep_beside
from lib.results.files import load, read_list, save
from lib.results.record import Record


def refusals(path: Path) -> Iterator[str]:
    """Why a run is no baseline."""
    run, records = load(path), read_list(path)
    missing = [cell for cell in CELL_IDS if cell not in {record["cell"] for record in records}]
    if missing:
        yield f"{len(missing)} of {len(CELL_IDS)} cells are missing, {missing[0]} among them"
    profiles = {record["profile"] for record in records}
    if profiles - {"quick", "full"} or len(profiles) > 1:
        yield "it is not of one profile that has scores"
    for record in records:
        if record["profile"] == "quick" and not record["bounds"]:
            yield f"{record['cell']} was changed or limited from the command line"
        if record["outcome"] != "passed":
            yield f"{record['cell']} did not pass: {record['outcome']}"
        if (record["device"] or {}).get("contended"):
            yield f"{record['cell']} shared its device"
    if run.get("commit_info", {}).get("dirty") is not False:
        yield "the commit had uncommitted changes, or nobody knows whether it had"


def combined(paths: Sequence[Path]) -> dict[str, Any]:
    """The first run's file with the rows of all; raises InputError where two are of one seed, or one is refused."""
    runs = [load(path) for path in paths]
    seen: dict[int, Path] = {}
    for path in paths:
        for reason in refusals(path):
            raise InputError(f"{path} cannot be a baseline: {reason}")
        for seed in {record["seeds"]["seed"] for record in read_list(path)}:
            if seed in seen:
                raise InputError(f"{path} and {seen[seed]} are both of seed {seed}; a baseline takes one run a seed")
            seen[seed] = path
    alike: dict[str, tuple[Any, ...]] = {}
    for record in (record for path in paths for record in read_list(path)):
        facts = (record["recipe"], record["limits"], (record["examples"] or {}).get("rows_hash"))
        if alike.setdefault(record["cell"], facts) != facts:
            raise InputError(f"the runs trained or scored {record['cell']} differently: they are no seeds of one thing")
    return runs[0] | {"benchmarks": [row for run in runs for row in run["benchmarks"] if "cell" in row["extra_info"]]}


def changes(old: Sequence[Record], new: Sequence[Record]) -> Iterator[str]:
    """A line a cell: the main score's mean over seeds, old -> new."""
    before, after = _means(old), _means(new)
    for cell, (name, score) in after.items():
        was = f"{before[cell][1]:.2f}" if cell in before else "none"
        yield f"{cell:<15} {name:<10} {was:>6} -> {score:.2f}"


def _means(records: Sequence[Record]) -> dict[str, tuple[str, float]]:
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record["cell"], []).append(record["scores"][record["main_score"]])
    names = {record["cell"]: record["main_score"] for record in records}
    return {cell: (names[cell], sum(scores) / len(scores)) for cell, scores in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write the baseline; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.baseline", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("to", type=Path, metavar="TO.json")
    options = parser.parse_args(arguments)
    try:
        baseline = combined(options.runs)
        old = read_list(options.to) if options.to.exists() else []
    except InputError as error:
        parser.error(str(error))
    records = [row["extra_info"] for row in baseline["benchmarks"]]
    print("\n".join(changes(old, records)))
    for path in options.runs:
        keep_beside(read_list(path), options.to, path)
    save(baseline, options.to)
    print(f"wrote {options.to}: {len(records)} records of {len(options.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
