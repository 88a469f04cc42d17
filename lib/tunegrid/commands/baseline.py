"""Make a baseline: `tunegrid baseline RUN.json [RUN.json ...] TO.json` takes complete, clean, passed runs.

A run has one seed or several (`--seeds 0-4`), and no seed is in two runs. A run is refused if a cell failed, stopped or is
missing for a seed, if it started perturbed or shared its device, or if its commit had uncommitted changes. It
prints what changes against the baseline that it replaces.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import Record
from tunegrid.results.alike import check_alike
from tunegrid.results.examples import pack_beside
from tunegrid.results.files import load, read_list, read_rows, save
from tunegrid.results.table import Column, lines, number
from tunegrid.terminal import say

COLUMNS = (
    Column(title="cell", width=15),
    Column(title="main score", width=10),
    Column(title="was", width=6, right=True),
    Column(title="", gap=1),
    Column(title="is"),
)


def refusals(path: Path) -> Iterator[str]:
    """Why a run cannot be a baseline."""
    run, records = load(path), read_list(path)
    profiles = {record.profile for record in records}
    for seed in dict.fromkeys(record.seeds.seed for record in records):
        cells = {record.cell for record in records if record.seeds.seed == seed}
        missing = [cell for cell in STUDY_IDS if cell not in cells]
        if missing and profiles != {"full"}:
            count = f"{len(missing)} of {len(STUDY_IDS)}"
            yield f"a baseline needs the study's cells; {count} are missing, {missing[0]} among them (seed {seed})"
    if profiles - {"quick", "full"} or len(profiles) > 1:
        yield "it is not of one profile that has scores"
    for record in records:
        if record.first_updates:
            yield f"{record.cell} made only its first {record.first_updates} updates, without scores"
        if record.profile == "quick" and record.cell in STUDY_IDS and not record.bounds:
            yield f"{record.cell} was changed or limited from the command line"
        if record.status != "passed":
            yield f"{record.cell} did not pass: {record.status} (seed {record.seeds.seed})"
        if record.seeds.perturbation is not None:
            draw = record.seeds.perturbation
            yield f"{record.cell} started perturbed (--set perturbation={draw}), which measures what rounding does"
        if record.device and record.device.contended:
            yield f"{record.cell} shared its device"
    commit = run.get("commit_info")
    if not isinstance(commit, dict) or commit.get("dirty") is not False:
        yield "the commit had uncommitted changes, or nobody knows whether it had"


def combined(paths: Sequence[Path]) -> tuple[dict[str, Any], list[Record]]:
    """The first run's file with the cells of all runs, and their records.

    Raises:
        InputError: where a run is refused, two are of one seed, or two did different things.
    """
    for path in paths:
        for reason in refusals(path):
            raise InputError(f"{path} cannot be a baseline: {reason}")
    rows_by_path = {path: read_rows(path) for path in paths}
    _check_seeds({path: [record for _, record in rows] for path, rows in rows_by_path.items()})
    rows = [row for path in paths for row in rows_by_path[path]]
    records = [record for _, record in rows]
    check_alike(records)
    return load(paths[0]) | {"benchmarks": [row for row, _ in rows]}, records


def _check_seeds(records_by_path: dict[Path, list[Record]]) -> None:
    """Raises InputError where two runs are of one seed."""
    path_by_seed: dict[int | None, Path] = {}
    for path, records in records_by_path.items():
        for seed in {record.seeds.seed for record in records}:
            if seed in path_by_seed:
                raise InputError(f"{path} and {path_by_seed[seed]} are both of seed {seed}; a baseline takes each seed once")
            path_by_seed[seed] = path


def changes(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """One line per cell: the main score's mean over seeds, old -> new."""
    before, after = _means(old), _means(new)
    names = {record.cell: record.main_score for record in new}
    cells = [
        (cell, names[cell], number(before[cell], 2) if cell in before else "none", "->", number(mean, 2))
        for cell, mean in after.items()
    ]
    return lines(COLUMNS, cells)[1:]


def _means(records: Sequence[Record]) -> dict[str, float | None]:
    """The main score's mean over seeds, by cell; None where no seed has one."""
    scores: dict[str, list[float]] = {}
    for record in records:
        score = record.scores.get(record.main_score)
        scores.setdefault(record.cell, []).extend([] if score is None else [score])
    return {cell: fmean(values) if values else None for cell, values in scores.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write the baseline; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid baseline", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("to", type=Path, metavar="TO.json")
    options = parser.parse_args(arguments)
    try:
        baseline, records = combined(options.runs)
        old = read_list(options.to) if options.to.exists() else []
        say("\n".join(changes(old, records)))
        pack_beside(records, options.to, *options.runs)
        save(baseline, options.to)
    except InputError as error:
        refuse(parser, error)
    say(f"wrote {options.to}: {len(records)} records of {len(options.runs)} runs")
    return 0
