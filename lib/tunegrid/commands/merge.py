"""Merge the runs of a CI matrix, or of shards: `tunegrid merge A.json B.json -o C.json`.

A session that was killed left a journal: `tunegrid merge --journal -o C.json` makes a run of it, by itself or with others.

Two files that hold the same cell, profile and seed are a conflict, unless they hold the same record: then it is taken once.
Files of `--shard` must be of one division; what is missing of the whole is named, and the exit code is 1. Cells are audited
beside each other anew, since a part does not show what all together do; the exit code is 1 where that shows a fault.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results import files
from tunegrid.results.files import BenchmarkRow, RunJson, case_of, has_no_time, name_of
from tunegrid.results.status import compared_together, contradicts
from tunegrid.terminal import say

RowKey = tuple[str, int | None]  # a row's name without its seed, and the seed


def joined(runs: Mapping[Path, RunJson]) -> tuple[dict[RowKey, BenchmarkRow], dict[RowKey, Record]]:
    """The rows of all runs, and the records of those that are cells; raises InputError where two contradict each other."""
    rows: dict[RowKey, BenchmarkRow] = {}
    records: dict[RowKey, Record] = {}
    sources: dict[RowKey, Path] = {}
    for path, run in runs.items():
        for row in run["benchmarks"]:
            row, record = files.current(row, path) if files.is_cell(row["extra_info"]) else (row, None)
            name, seed = name_of(row), record.seeds.seed if record else None
            key = (name.replace(f"-seed{seed}]", "]"), seed)  # with --seeds, a test's id says it
            if key in rows and has_no_time(row):
                continue  # another run has as much of it
            if key in rows and not has_no_time(rows[key]):
                if rows[key]["extra_info"] != row["extra_info"]:
                    raise InputError(f"{key[0]} with seed {seed} is in {sources[key]} and in {path}, with different results")
                continue
            rows[key], sources[key] = row, path
            if record:
                records[key] = record
    return rows, records


def main(arguments: list[str] | None = None) -> int:
    """Write the merged file; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid merge", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN.json")
    described = "also the cells of this journal (default: of the newest)"
    parser.add_argument("--journal", nargs="?", const="", metavar="FILE", help=described)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.json")
    options = parser.parse_args(arguments)
    from tunegrid.results.summary import cell_lines  # here, since it imports pandas, which --help can do without

    if not options.runs and options.journal is None:
        parser.error("give the runs to merge, or --journal for that of a session that was killed")
    try:
        runs = {path: files.load(path) for path in options.runs}
        if options.journal is not None:
            journal = Path(options.journal) if options.journal else files.latest()
            runs[journal] = files.as_run(journal)
        rows, alone = joined(runs)
        records = dict(zip(alone, compared_together(list(alone.values())), strict=True))
        absent = files.missing_runs(runs, {case_of(records[key]) for key in records if not has_no_time(rows[key])})
        first = {name: value for name, value in next(iter(runs.values())).items() if name not in (files.SHARD, files.COMMAND)}
        merged = first | {"benchmarks": files.rows_by_name(rows, records)}
        files.save(merged, options.output, records.values(), options.runs)
    except (InputError, OSError) as error:
        refuse(parser, error)
    for line, _ in cell_lines(records.values()):
        say(line)
    if options.journal == "":
        say(f"took the journal {journal}")
    say(f"wrote {options.output}: {len(rows)} rows of {len(runs)} runs")
    for sentence in absent:
        say(sentence, error=True)
    return 1 if absent or any(map(contradicts, records.values())) else 0
