"""Merge the runs of a CI matrix, or of shards: `tunegrid merge A.json B.json -o C.json`.

A session that was killed left a journal: `tunegrid merge --journal -o C.json` makes a run of it, by itself or with others.

Two files that hold the same cell, profile and seed are a conflict, unless they hold the same record: then it is taken once.
Files of `--shard` must be of one division; what is missing of the whole is named, and the exit code is 1. Cells are audited
beside each other anew, since a part does not show what all together do; the exit code is 1 where that shows a fault.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.files import COMMAND, BenchmarkRow, RunJson, has_no_time, is_cell, load
from tunegrid.results.files import current as current_row
from tunegrid.results.journal import as_run, latest
from tunegrid.results.shards import KEY, case_of, check_divided_alike, missing, shard_of
from tunegrid.results.writing import FinishedRun, name_of
from tunegrid.terminal import say

RowKey = tuple[str, int | None]  # a row's name without its seed, and the seed


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What several files hold together.

    Attributes:
        run: the first file's, with the rows of all.
        finished: the cells of all.
        absent: sentences on what is missing of the whole that shards are of.
    """

    run: RunJson
    finished: FinishedRun[RowKey]
    absent: Sequence[str]


def merged(runs: Mapping[Path, RunJson]) -> Merged:
    """What the runs of these files hold; raises InputError where two contradict each other, or are not shards of one run."""
    shards = {path: shard for path, run in runs.items() if (shard := shard_of(run, path))}
    check_divided_alike(shards)
    rows, records = _joined(runs)
    finished = FinishedRun(records)
    first = next(iter(runs.values()))
    run = {name: value for name, value in first.items() if name not in (KEY, COMMAND)} | {"benchmarks": finished.rows(rows)}
    present = {case_of(records[key]) for key in records if not has_no_time(rows[key])}
    return Merged(run=run, finished=finished, absent=missing(shards.values(), present))


def _joined(runs: Mapping[Path, RunJson]) -> tuple[dict[RowKey, BenchmarkRow], dict[RowKey, Record]]:
    """The rows of all runs, and the records of those that are cells."""
    rows: dict[RowKey, BenchmarkRow] = {}
    records: dict[RowKey, Record] = {}
    sources: dict[RowKey, Path] = {}
    for path, run in runs.items():
        for row in run["benchmarks"]:
            key, current, record = _read(row, path)
            if key in rows and (has_no_time(rows[key]) or has_no_time(current)):
                if has_no_time(current):
                    continue  # another run has more of it
                del rows[key], records[key], sources[key]
            if key in rows and rows[key]["extra_info"] != current["extra_info"]:
                name, seed = key
                raise InputError(f"{name} with seed {seed} is in {sources[key]} and in {path}, with different results")
            rows.setdefault(key, current)
            sources.setdefault(key, path)
            if record:
                records.setdefault(key, record)
    return rows, records


def _read(row: BenchmarkRow, path: Path) -> tuple[RowKey, BenchmarkRow, Record | None]:
    name = name_of(row)
    if not is_cell(row["extra_info"]):
        return (name, None), row, None
    row, record = current_row(row, path)
    seed = record.seeds.seed
    return (name.replace(f"-seed{seed}]", "]"), seed), row, record  # with --seeds, a test's id says it


def runs_of(paths: Sequence[Path], journal: str | None, output: Path) -> dict[Path, RunJson]:
    """Saved runs, and that of a journal if one is named; "" names that of the session that was to write the output.

    Raises:
        InputError: where one cannot be read.
    """
    runs = {path: load(path) for path in paths}
    if journal is not None:
        path = Path(journal) if journal else latest(run=output)
        runs[path] = as_run(path)
    return runs


def main(arguments: list[str] | None = None) -> int:
    """Write the merged file; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid merge", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN.json")
    parser.add_argument(
        "--journal",
        nargs="?",
        const="",
        metavar="FILE",
        help="also the cells of this journal (default: of the session that was to write OUT, else the newest)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.json")
    options = parser.parse_args(arguments)
    if not options.runs and options.journal is None:
        parser.error("give the runs to merge, or --journal for that of a session that was killed")
    try:
        runs = runs_of(options.runs, options.journal, options.output)
        whole = merged(runs)
        whole.finished.save(whole.run, options.output, beside=options.runs)
    except (InputError, OSError) as error:
        refuse(parser, error)
    for line in whole.finished.lines():
        say(line.text)
    if options.journal == "":
        say(f"took the journal {list(runs)[-1]}")
    say(f"wrote {options.output}: {len(whole.run['benchmarks'])} rows of {len(runs)} runs")
    for sentence in whole.absent:
        say(sentence, error=True)
    return 1 if whole.absent or whole.finished.contradicted else 0
