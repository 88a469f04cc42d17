"""Make a baseline: `tunegrid baseline RUN.json [RUN.json ...] TO.json` takes complete, clean, passed runs.

A run has one seed or several (`--seeds 0-4`), and no seed is in two runs. A run is refused if a cell failed, stopped or is
missing for a seed, if it started perturbed or shared its device, or if its commit had uncommitted changes. It
prints what changes against the baseline that it replaces.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import Record
from tunegrid.results.alike import check_alike
from tunegrid.results.examples import pack_beside
from tunegrid.results.files import BenchmarkRow, RunJson, current, is_cell, load, read_list, save
from tunegrid.results.report import Section, text
from tunegrid.terminal import say


def refusals(run: RunJson, records: Sequence[Record]) -> Iterator[str]:
    """Why a run with these records cannot be a baseline."""
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


def combined(paths: Sequence[Path]) -> tuple[RunJson, list[Record]]:
    """The first run's file with the cells of all runs, and their records.

    Raises:
        InputError: where a run is refused, two are of one seed, or two did different things.
    """
    runs, rows = [load(path) for path in paths], list[tuple[BenchmarkRow, Record]]()
    path_by_seed: dict[int | None, Path] = {}
    for path, run in zip(paths, runs, strict=True):
        own = [current(row, path) for row in run["benchmarks"] if is_cell(row["extra_info"])]
        for reason in refusals(run, [record for _, record in own]):
            raise InputError(f"{path} cannot be a baseline: {reason}")
        for seed in {record.seeds.seed for _, record in own}:
            if seed in path_by_seed:
                raise InputError(f"{path} and {path_by_seed[seed]} are both of seed {seed}; a baseline takes each seed once")
            path_by_seed[seed] = path
        rows += own
    records = [record for _, record in rows]
    check_alike(records)
    return runs[0] | {"benchmarks": [row for row, _ in rows]}, records


def changes(old: Sequence[Record], new: Sequence[Record]) -> Section:
    """The main score's mean over seeds, one line per cell."""
    import pandas as pd

    scores = [
        {"cell": record.cell, "main score": record.main_score, when: record.scores.get(record.main_score)}
        for when, records in (("is", new), ("was", old))
        for record in records
    ]
    frame = pd.DataFrame(scores, columns=["cell", "main score", "was", "is"]).astype({"was": float, "is": float})
    means = frame.groupby(["cell", "main score"], sort=False).mean().reset_index()
    return Section(frame=means, formats={"was": ".2f", "is": ".2f"})


def main(arguments: list[str] | None = None) -> int:
    """Write the baseline; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid baseline", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("to", type=Path, metavar="TO.json")
    options = parser.parse_args(arguments)
    try:
        baseline, records = combined(options.runs)
        old = read_list(options.to) if options.to.exists() else []
        say(text([changes(old, records)]))
        pack_beside(records, options.to, *options.runs)
        save(baseline, options.to)
    except InputError as error:
        refuse(parser, error)
    say(f"wrote {options.to}: {len(records)} records of {len(options.runs)} runs")
    return 0
