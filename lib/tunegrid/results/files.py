"""Reads the records or rows of a saved run, a pytest-benchmark JSON."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegrid.disk import replacing
from tunegrid.errors import InputError
from tunegrid.record import Record, from_json, to_json
from tunegrid.results import examples

BenchmarkRow = dict[str, Any]  # of pytest-benchmark: name, fullname, stats, and the record as `extra_info`
RunJson = dict[str, Any]  # a run: its rows as `benchmarks`, the machine, the commit, when
# In a file, the rows of cells that did not come to their end stand apart: pytest-benchmark reads a time from every benchmark.
UNFINISHED = "unfinished"
COMMAND = "command"  # of a run's JSON, beside pytest-benchmark's own: what started the session


def load(path: Path) -> RunJson:
    """A saved run as it is; raises InputError where the file is missing, cut off or no run."""
    try:
        run: RunJson = json.loads(path.read_text(encoding="utf-8"))
        run["benchmarks"] = [*run["benchmarks"], *run.pop(UNFINISHED, [])]
        rows = [row["extra_info"] | {} for row in run["benchmarks"]]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `pytest -m quick --benchmark-json={path}` writes it") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the file of a run") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a complete pytest-benchmark JSON ({type(error).__name__}: {error})") from None
    if not any(is_cell(row) for row in rows):
        raise InputError(f"{path} holds no cells; was it saved by `pytest -m quick`?")
    for what in twice(rows):
        raise InputError(f"{path} holds {what} twice; leave one of the two rows out")
    return run


def twice(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The cells, each with its profile and seed, of which there are two records."""
    seen: set[str] = set()
    for record in filter(is_cell, records):
        seeds = record.get("seeds")
        seed = seeds.get("seed") if isinstance(seeds, dict) else None
        case = f"{record['cell']} ({record.get('profile')}, seed {seed})"
        if case in seen:
            yield case
        seen.add(case)


def is_cell(extra_info: Mapping[str, Any]) -> bool:
    """Whether a row's `extra_info` is a cell's record; other benchmarks have rows, too."""
    return "cell" in extra_info


def save(run: RunJson, path: Path) -> None:
    """Write a run with one row per line, so that a diff shows which cells changed; whole, or not at all."""
    untimed = [row for row in run["benchmarks"] if has_no_time(row)]
    timed = [row for row in run["benchmarks"] if not has_no_time(row)]
    fields = {name: json.dumps(value, default=str) for name, value in run.items()} | {"benchmarks": _lines(timed)}
    fields |= {UNFINISHED: _lines(untimed)} if untimed else {}
    try:
        text = f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in fields.items())}}}\n"
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def has_no_time(row: BenchmarkRow) -> bool:
    """Whether a row is of a cell that did not come to its end, and so is no benchmark."""
    return "stats" not in row and row["extra_info"].get("status") in ("error", "killed", "not run")


def _lines(rows: Iterable[BenchmarkRow]) -> str:
    """A JSON list with one row per line."""
    return "[\n" + ",\n".join(json.dumps(row, default=str) for row in rows) + "\n]"


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A saved run, read once for all who look at it.

    Attributes:
        when: the ISO date and time at which it was saved, in UTC.
        commit: of the suite that ran it; ten digits.
        command: that ran it; empty where the file holds none, as a merged one.
    """

    path: Path
    records: list[Record]
    when: str
    commit: str
    command: str = ""


def read_saved(path: Path, with_rows: bool = True) -> SavedRun:
    """A saved run with all its records, in the current version, each held to itself and to its test rows.

    Args:
        path: of the run's JSON.
        with_rows: False for a reader who looks at no score.

    Raises:
        InputError: where the file cannot be read, or a record is not sound.
    """
    run = load(path)
    records = [from_json(row["extra_info"], str(path)) for row in run["benchmarks"] if is_cell(row["extra_info"])]
    for record in records if with_rows else ():
        examples.check(record, path)
    commit: Any = run.get("commit_info")
    commit = str(commit.get("id") or "")[:10] if isinstance(commit, dict) else ""
    when, command = (str(run.get(name) or "") for name in ("datetime", COMMAND))
    return SavedRun(path=path, records=records, when=when, commit=commit, command=command)


def read_list(path: Path) -> list[Record]:
    """All records of a saved run, in the current version; raises InputError where it holds no cells, or one is not sound."""
    return read_saved(path).records


def read_rows(path: Path) -> list[tuple[BenchmarkRow, Record]]:
    """The rows of a saved run's cells, each with its record; raises InputError as `read_list` does."""
    return [current(row, path) for row in load(path)["benchmarks"] if is_cell(row["extra_info"])]


def current(row: BenchmarkRow, path: Path) -> tuple[BenchmarkRow, Record]:
    """A cell's row with its record in the current version, and that record; raises InputError where it is not sound."""
    record = from_json(row["extra_info"], str(path))
    examples.check(record, path)
    return row | {"extra_info": to_json(record)}, record


def read_records(path: Path, profile: str | None = None) -> dict[str, Record]:
    """Records by cell id, all or one profile's."""
    return {record.cell: record for record in read_list(path) if profile in (None, record.profile)}
