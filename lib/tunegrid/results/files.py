"""Reads the records or rows of a saved run, a pytest-benchmark JSON."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError
from tunegrid.record import Record, from_json, to_json

BenchmarkRow = dict[str, Any]  # of pytest-benchmark: name, fullname, stats, and the record as `extra_info`
RunJson = dict[str, Any]  # a run: its rows as `benchmarks`, the machine, the commit, when


def load(path: Path) -> RunJson:
    """A saved run as it is; raises InputError where the file is missing, cut off or no run."""
    try:
        run: RunJson = json.loads(path.read_text())
        rows = [row["extra_info"] | {} for row in run["benchmarks"]]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `pytest -m quick --benchmark-json={path}` writes it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a complete pytest-benchmark JSON ({type(error).__name__}: {error})") from None
    if not any(is_cell(row) for row in rows):
        raise InputError(f"{path} holds no cells; was it saved by `pytest -m quick`?")
    return run


def is_cell(extra_info: Mapping[str, Any]) -> bool:
    """Whether a row's `extra_info` is a cell's record; other benchmarks have rows, too."""
    return "cell" in extra_info


def save(run: RunJson, path: Path) -> None:
    """Write a run with one row per line, so that a diff shows which cells changed; whole, or not at all."""
    rows = ",\n".join(json.dumps(row, default=str) for row in run["benchmarks"])
    fields = {name: json.dumps(value, default=str) for name, value in run.items()} | {"benchmarks": f"[\n{rows}\n]"}
    part = path.with_name(f"{path.name}.part")  # never the path itself, whatever its suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in fields.items())}}}\n")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            part.unlink()


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A saved run, read once for all who look at it.

    Attributes:
        when: the ISO date and time at which it was saved, in UTC.
        commit: of the suite that ran it; ten digits.
    """

    path: Path
    records: list[Record]
    when: str
    commit: str


def read_saved(path: Path) -> SavedRun:
    """A saved run with all its records, in the current version; raises InputError where it cannot be read."""
    run = load(path)
    records = [from_json(row["extra_info"], str(path)) for row in run["benchmarks"] if is_cell(row["extra_info"])]
    commit: Any = run.get("commit_info")
    commit = str(commit.get("id") or "")[:10] if isinstance(commit, dict) else ""
    return SavedRun(path=path, records=records, when=str(run.get("datetime") or ""), commit=commit)


def read_list(path: Path) -> list[Record]:
    """All records of a saved run, in the current version; raises InputError where it holds no cells, or one is not sound."""
    return read_saved(path).records


def read_rows(path: Path) -> list[tuple[BenchmarkRow, Record]]:
    """The rows of a saved run's cells, each with its record; raises InputError as `read_list` does."""
    return [current(row, str(path)) for row in load(path)["benchmarks"] if is_cell(row["extra_info"])]


def current(row: BenchmarkRow, source: str) -> tuple[BenchmarkRow, Record]:
    """A cell's row with its record in the current version, and that record; raises InputError where it is not sound."""
    record = from_json(row["extra_info"], source)
    return row | {"extra_info": to_json(record)}, record


def read_records(path: Path, profile: str | None = None) -> dict[str, Record]:
    """Records by cell id, all or one profile's."""
    return {record.cell: record for record in read_list(path) if profile in (None, record.profile)}
