"""A saved run, which is a pytest-benchmark JSON: reads and writes its rows and records; and the journal of a session's rows.

Nobody hands out shards: each machine reckons all of them (`tunegrid.results.estimates.shared_out`) and takes its own. A shard's
file says its number, of how many, and the cases that the whole run has. A killed session loses no finished cell: each is a line
of `.cache/journal/*.jsonl` as soon as it ends, with the key that says whether it still holds (`tunegrid.results.resume_key`).
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tunegrid.errors import InputError
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import cpu_name, gpus, replacing, versions
from tunegrid.record import Record, from_json, to_json
from tunegrid.record.io import unique_keys
from tunegrid.results import examples
from tunegrid.results.report import some

BenchmarkRow = dict[str, Any]  # of pytest-benchmark: name, fullname, stats, and the record as `extra_info`
RunJson = dict[str, Any]  # a run: its rows as `benchmarks`, the machine, the commit, when
# Beside pytest-benchmark's own in a run's JSON: rows of cells that came to no end (pytest-benchmark reads a time from every
# benchmark), what started the session, and which shard of a run it is.
UNFINISHED, COMMAND, SHARD = "unfinished", "command", "shard"
NAMED = 30  # missing runs that are named
JOURNAL = CACHE / "journal"


class Case(NamedTuple):
    """One run of one cell."""

    profile: str
    cell: str
    seed: int | None

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"{self.cell} ({self.profile}, seed {self.seed})"


def case_of(record: Record) -> Case:
    """Which run a record is of."""
    return Case(record.profile, record.cell, record.seeds.seed)


def is_cell(extra_info: Mapping[str, Any]) -> bool:
    """Whether a row's `extra_info` is a cell's record; other benchmarks have rows, too."""
    return "cell" in extra_info


def has_no_time(row: BenchmarkRow) -> bool:
    """Whether a row is of a cell that did not come to its end, and so is no benchmark."""
    return "stats" not in row and row["extra_info"].get("status") in ("error", "killed", "not run")


def name_of(row: BenchmarkRow) -> str:
    """Of a row's test."""
    return str(row.get("fullname") or row.get("name"))


# Reading


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A saved run, read once for all who look at it."""

    path: Path
    records: list[Record]
    when: str  # it was saved, as an ISO date and time in UTC
    commit: str  # of the suite that ran it; ten digits
    command: str = ""  # that ran it; a merged file holds none


def load(path: Path) -> RunJson:
    """A saved run as it is; raises InputError where the file is missing, cut off, no run, or holds a cell or a name twice."""
    try:
        run: RunJson = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
        run["benchmarks"] = [*run["benchmarks"], *run.pop(UNFINISHED, [])]
        cells = [record for row in run["benchmarks"] if is_cell(record := row["extra_info"] | {})]
        seeds = [record["seeds"].get("seed") if isinstance(record.get("seeds"), dict) else None for record in cells]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `pytest -m quick --benchmark-json={path}` writes it") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the file of a run") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a complete pytest-benchmark JSON ({type(error).__name__}: {error})") from None
    if not cells:
        raise InputError(f"{path} holds no cells; was it saved by `pytest -m quick`?")
    cases = (str(Case(record.get("profile"), record["cell"], seed)) for record, seed in zip(cells, seeds, strict=True))
    if twice := [case for case, count in Counter(cases).items() if count > 1]:
        raise InputError(f"{path} holds {twice[0]} twice; leave one of the two rows out")
    return run


def current(row: BenchmarkRow, path: Path) -> tuple[BenchmarkRow, Record]:
    """A cell's row with its record in the current version, and that record; raises InputError where it is not sound."""
    record = from_json(row["extra_info"], str(path))
    examples.read(record, path)
    return row | {"extra_info": to_json(record)}, record


def read_saved(path: Path, with_rows: bool = True) -> SavedRun:
    """A saved run with all its records, in the current version; raises InputError where one is not sound.

    Each is held to itself, and to its test rows unless `with_rows` is False, for a reader who looks at no score.
    """
    run = load(path)
    records = [from_json(row["extra_info"], str(path)) for row in run["benchmarks"] if is_cell(row["extra_info"])]
    for record in records if with_rows else ():
        examples.read(record, path)
    commit, (when, command) = run.get("commit_info"), (str(run.get(name) or "") for name in ("datetime", COMMAND))
    commit = str(commit.get("id") or "")[:10] if isinstance(commit, dict) else ""
    return SavedRun(path=path, records=records, when=when, commit=commit, command=command)


def read_list(path: Path) -> list[Record]:
    """All records of a saved run, in the current version; raises InputError where it holds no cells, or one is not sound."""
    return read_saved(path).records


# Writing


def rows_by_name(rows: Mapping[Any, BenchmarkRow], records: Mapping[Any, Record]) -> list[BenchmarkRow]:
    """The rows in the order of their tests' names, those of cells with the records of the same keys."""
    updated = [row | {"extra_info": to_json(records[key])} if key in records else row for key, row in rows.items()]
    return sorted(updated, key=name_of)


def save(run: RunJson, path: Path, records: Iterable[Record] = (), beside: Collection[Path] = ()) -> None:
    """Write a run, whole or not at all, with one row per line, so that a diff shows which cells changed.

    The examples of these records go next to it, taken from beside these other runs, or from this machine's store. Raises
    InputError where the disk has no room.
    """
    timed, untimed = ([row for row in run["benchmarks"] if has_no_time(row) is apart] for apart in (False, True))
    fields = {name: json.dumps(value, default=str) for name, value in run.items()}
    for name, rows in {"benchmarks": timed, **({UNFINISHED: untimed} if untimed else {})}.items():
        fields[name] = "[\n" + ",\n".join(json.dumps(row, default=str) for row in rows) + "\n]"
    try:
        with replacing(path) as part:
            text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items())
            part.write_text(f"{{{text}}}\n", encoding="utf-8")
        examples.keep_beside(records, path, *beside)
    except OSError as error:
        raise InputError(f"{path} or its examples cannot be written ({error.strerror or error})") from None


def missing_runs(runs: Mapping[Path, RunJson], present: Collection[Case]) -> list[str]:
    """What these files lack of the run that they are shards of: shards without a file, and runs that are nowhere.

    Nothing where none is a shard. Raises InputError where they are shards of different runs, or do not say of which.
    """
    numbers, wholes = set[int](), {}
    for path, run in runs.items():
        try:
            if SHARD in run:
                number, of, whole = (run[SHARD][name] for name in ("number", "of", "whole"))
                wholes[path] = int(of), frozenset(Case(*case) for case in whole)
                numbers.add(int(number))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not say which shard it is ({type(error).__name__}: {error})") from None
    if len(set(wholes.values())) > 1:
        names = ", ".join(map(str, wholes))
        raise InputError(f"{names} are shards of different runs: give all the same --shard=N/M, -m, --cells and --seeds")
    of, whole = next(iter(wholes.values()), (0, frozenset[Case]()))
    lost = sorted(whole.difference(present))
    absent = ", ".join(f"{number}/{of}" for number in range(1, of + 1) if number not in numbers)
    missing = f"{len(lost)} of {len(whole)} runs are missing: {some(list(map(str, lost)), NAMED)}"
    return [*([f"no file of shard {absent}"] if absent else []), missing] if lost else []


# The journal


class Journal:
    """One session's file, which its first row creates."""

    def __init__(self, folder: Path = JOURNAL) -> None:
        """Named by when the session began, and by its process."""
        self.path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"

    def append(self, key: str, *rows: BenchmarkRow) -> None:
        """Write rows and wait until the disk has them; raises OSError where it has no room.

        A later row of a test takes the place of an earlier one, as that of a cell which was only going to run.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            for row in rows:  # with a break before it, too: a kill or a full disk may have left half a line
                file.write(f"\n{json.dumps({'key': key, 'row': row})}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path) -> Iterator[tuple[str, BenchmarkRow]]:
    """Keys and rows of a journal; a line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            yield str(entry["key"]), entry["row"] | {"extra_info": entry["row"]["extra_info"] | {}}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def passed(folder: Path = JOURNAL) -> dict[str, tuple[BenchmarkRow, Path]]:
    """By key, the latest row of each cell that passed, or made its first updates without an objection, and its journal."""
    rows = {}
    for path in sorted(folder.glob("*.jsonl")):
        for key, row in read_journal(path):
            status, missed = (row["extra_info"].get(name) for name in ("status", "missed"))
            if status == "passed" or (status == "begun" and not missed):
                rows[key] = (row, path)
    return rows


def latest(folder: Path = JOURNAL) -> Path:
    """The newest journal that holds a cell which came to its end; raises InputError where none does."""
    journals = sorted(folder.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    if path := next(filter(_has_ended_cell, journals), None):
        return path
    raise InputError(f"no journal in {folder}: no cell has finished here yet")


def _has_ended_cell(path: Path) -> bool:
    return any(is_cell(row["extra_info"]) and not has_no_time(row) for _, row in read_journal(path))


def as_run(path: Path) -> RunJson:
    """The last row of each test in a journal as a run of this machine; raises InputError where no cell has finished."""
    if not _has_ended_cell(path):
        raise InputError(f"{path} holds no finished cell")
    rows = {str(row.get("fullname") or number): row for number, (_, row) in enumerate(read_journal(path))}
    return {
        "machine_info": {"tunegrid": {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}},
        "commit_info": {"dirty": None},  # a journal does not know
        "benchmarks": list(rows.values()),
        "datetime": datetime.now(UTC).isoformat(),
        "version": "journal",
    }
