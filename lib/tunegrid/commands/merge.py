"""Merges runs of CI jobs, shards or seeds: `tunegrid merge A.json B.json -o C.json`.

A session that was killed leaves a journal: `tunegrid merge --journal -o C.json` turns it into a
run, alone or together with files.

Files may not hold different records of the same cell, profile and seed. Files written with
`--shard` must be parts of one run; missing cells are named. Audits that compare cells are repeated
on the merged run. The exit code is 1 if cells are missing or one of these audits finds a fault. A
file that was changed since it was written is rejected. If a file is unsealed, because an older
version wrote it, the merged run is unsealed, too.

`--baseline` rejects runs that cannot be a baseline: because cells failed, were changed, are missing
for a seed, started from perturbed weights or shared their device, because of uncommitted changes,
or because a file is unsealed. Each seed must have the same cells, and all 27 quick cells of the
study if it has one of them. `--cells` keeps and requires only the cells that it names.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import Record, from_json
from tunegrid.runs import files
from tunegrid.runs.files import (
    NEW_RUN,
    REFUSED,
    BenchmarkRow,
    SavedRun,
    check_alike,
    has_no_time,
    record_case,
    row_name,
)
from tunegrid.runs.seal import SEAL
from tunegrid.runs.status import compare_cells, contradicts, first_trainings
from tunegrid.terminal import say
from tunegrid.words import count, phrase, some

NEXT_STEP = (
    "its record could not be saved; all that it measured is kept under `refused` in its row of {}. "
    "Correct the cause, then --resume runs it again; a version that can read the record takes it "
    "up when it merges the file"
)
SCORED_PROFILES = {"quick", "zoo", "tasks", "full"}
RowKey = tuple[str, int | None]  # a row's name without its seed, and the seed


def merge_rows(runs: Sequence[SavedRun]) -> tuple[dict[RowKey, BenchmarkRow], dict[RowKey, Record]]:
    """Collect the rows of all runs and the records of cells, by test name and seed.

    Raises InputError if two runs have different results for the same row.
    """
    rows: dict[RowKey, BenchmarkRow] = {}
    records = {}
    sources = {}
    for run in runs:
        for row, record in map(accept_refused, run.rows):
            seed = record.seeds.seed if record else None
            # with --seeds, the test's id contains its seed
            name = row_name(row).replace(f"-seed{seed}]", "]")
            key = name, seed
            known_row = rows.get(key)
            if known_row is None or (has_no_time(known_row) and not has_no_time(row)):
                rows[key] = row
                sources[key] = run.path
                if record:
                    records[key] = record
            elif not has_no_time(row) and known_row["extra_info"] != row["extra_info"]:
                fault = f"{name} with seed {seed} is in {sources[key]} and in {run.path}"
                raise InputError(f"{fault}, with different results: leave one out")
    return rows, records


def accept_refused(pair: tuple[BenchmarkRow, Record | None]) -> tuple[BenchmarkRow, Record | None]:
    """Restore a record that was rejected and kept in its row, if it can be read now."""
    row = pair[0]
    if not isinstance(row.get(REFUSED), dict):
        return pair
    try:
        record = from_json(row[REFUSED])
    except InputError:
        return pair
    fields = {name: value for name, value in row.items() if name != REFUSED}
    return fields | {"extra_info": row[REFUSED]}, record


def check_seals(runs: Sequence[SavedRun], as_baseline: bool) -> None:
    """Raises InputError if a file was changed or, for a baseline, if a file is unsealed."""
    for run in runs:
        run.check_unchanged()
        if as_baseline and run.doubt:
            raise InputError(f"{run.warning}, so it cannot be a baseline: {NEW_RUN}")


def expected_cells(records: Sequence[Record], is_selection: bool) -> list[str]:
    """The cells that a baseline must hold for each seed.

    These are the cells of the records. If one of them is a quick cell of the study and --cells was
    not given, all cells of the study are added.
    """
    cells = dict[str, None]()
    for record in records:
        cells[record.cell] = None
        if not is_selection and record.profile == "quick" and record.cell in STUDY_IDS:
            cells |= dict.fromkeys(STUDY_IDS)
    return list(cells)


def keep_cells(records: Mapping[RowKey, Record], names: str) -> dict[RowKey, Record]:
    """Keep the records of the cells named in --cells.

    Raises InputError if one of these cells is in no run.
    """
    cells = dict.fromkeys(name.strip() for name in names.split(","))
    kept = {key: record for key, record in records.items() if record.cell in cells}
    held = {record.cell for record in kept.values()}
    for cell in cells:
        if cell not in held:
            raise InputError(f"--cells: no run holds {cell!r}")
    return kept


def check_baseline(
    runs: Sequence[SavedRun],
    records: Sequence[Record],
    cells: Sequence[str],
) -> str:
    """Check that runs can be a baseline of these cells for every seed; return a sentence about it.

    Raises InputError if they cannot.
    """
    reasons = []
    for run in runs:
        commit = run.content.get("commit_info")
        if not isinstance(commit, dict) or commit.get("dirty") is not False:
            fault = "had uncommitted changes, or it is not known whether it had"
            reasons.append(f"the commit of {run.path} {fault}")
    profiles = {record.profile for record in records}
    if len(profiles) != 1 or not profiles <= SCORED_PROFILES:
        reasons.append("it is not of one profile with scores")
    cells_by_seed: dict[int | None, list[str]] = {}
    for record in records:
        cells_by_seed.setdefault(record.seeds.seed, []).append(record.cell)
    for seed, held in cells_by_seed.items():
        missing_cells = [cell for cell in cells if cell not in held]
        if missing_cells:
            hint = f"run them, or name the cells that it is for: --cells={','.join(held)}"
            reasons.append(f"cells are missing with seed {seed}: {some(missing_cells)}; {hint}")
    for record in records:
        is_study_cell = record.profile == "quick" and record.cell in STUDY_IDS
        faults = []
        if not record.unharmed:
            faults.append(f"did not pass: {record.status}")
        if is_study_cell and not record.bounds:
            faults.append("was changed or limited from the command line")
        if record.seeds.perturbation is not None:
            faults.append("started from perturbed weights, which measures rounding")
        if record.device and record.device.contended:
            faults.append("shared its device with other processes")
        reasons += [f"{record_case(record)} {fault}" for fault in faults]
    if reasons:
        raise InputError(f"this cannot be a baseline: {reasons[0]}")
    check_alike(records)
    scope = "all of the study" if set(STUDY_IDS) <= set(cells) else some(cells)
    seeds = phrase([f"seed {seed}" for seed in cells_by_seed])
    return f"it is a baseline of {count(len(cells), 'cell')} ({scope}) with {seeds}"


def main(arguments: list[str] | None = None) -> int:
    """Write the merged file; return the exit code.

    Raises InputError if runs cannot be read, contradict each other or cannot be a baseline.
    """
    parser = argparse.ArgumentParser(prog="tunegrid merge", description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="*", metavar="RUN.json")
    add(
        "--journal",
        nargs="?",
        const="",
        metavar="FILE",
        help="also a journal's cells (default: the newest)",
    )
    add(
        "--baseline",
        action="store_true",
        help="refuse runs that are not complete, clean and passed",
    )
    add("--cells", metavar="ID,ID", help="only these cells")
    add("-o", "--output", type=Path, required=True, metavar="OUT.json")
    options = parser.parse_args(arguments)
    from tunegrid.report.summary import cell_lines  # imports pandas, which --help does not need

    if not options.runs and options.journal is None:
        parser.error("give the runs to merge, or --journal for the cells of a killed session")
    runs = [files.read_saved(path) for path in options.runs]
    if options.journal is not None:
        runs.append(files.journal_run(Path(options.journal) if options.journal else None))
    check_seals(runs, options.baseline)
    rows, raw_records = merge_rows(runs)
    if options.cells is not None:
        raw_records = keep_cells(raw_records, options.cells)
        rows = {key: rows[key] for key in raw_records}
    records = dict(zip(raw_records, compare_cells(list(raw_records.values())), strict=True))
    baseline = ""
    if options.baseline:
        first_records = first_trainings(records.values())
        cells = expected_cells(first_records, options.cells is not None)
        baseline = check_baseline(runs, first_records, cells)
    finished = {record_case(records[key]) for key in records if not has_no_time(rows[key])}
    warning = files.missing_runs(runs, finished)
    own_keys = (files.SHARD, files.COMMAND, files.NOISE, SEAL)  # these describe a single run
    merged = {name: value for name, value in runs[0].content.items() if name not in own_keys}
    noise: list[files.OwnNoise] = []
    for run in runs:
        noise += run.noise
    merged["benchmarks"] = files.rows_by_name(rows, records)
    merged |= files.noise_json(noise, records.values())
    unsealed = [run.warning for run in runs if run.doubt]
    for sentence in unsealed[:1]:
        say(f"{sentence}, so {options.output} has none either: it can be shown, but is no baseline")
    files.save(merged, options.output, records.values(), options.runs, is_sealed=not unsealed)
    for line, _ in cell_lines(records.values()):
        say(line)
    for run in runs:
        if run.left_out:
            lines = f"{count(run.left_out, 'line')} of {run.path}"
            say(f"left out {lines} that {files.WAS_CHANGED}", error=True)
    for key, row in rows.items():
        if REFUSED in row:
            say(f"{record_case(records[key])}: {NEXT_STEP.format(options.output)}", error=True)
    say(f"wrote {options.output}: {len(rows)} rows of {', '.join(str(run.path) for run in runs)}")
    if baseline:
        say(baseline)
    if warning:
        say(warning, error=True)
    return 1 if warning or any(map(contradicts, records.values())) else 0
