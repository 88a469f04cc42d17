"""Saved runs. In: the path of a pytest-benchmark JSON. Out: its records."""

import json
from pathlib import Path
from typing import Any

from lib.errors import InputError
from lib.results.record import SCHEMA_VERSION, Record


def load(path: Path) -> dict[str, Any]:
    """A saved run as it stands; raises InputError where the file is missing, cut off or no run."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        records = [row["extra_info"] for row in found["benchmarks"]]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `pytest -m quick --benchmark-json={path}` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a complete pytest-benchmark JSON ({type(error).__name__}: {error})") from None
    odd = sorted({str(record.get("schema_version")) for record in records if "cell" in record} - {str(SCHEMA_VERSION)})
    if odd:
        hint = f"this tunegrid reads {SCHEMA_VERSION}; run its cells again"
        raise InputError(f"{path} holds records of schema version {odd[0]}, {hint}")
    return found


def save(run: dict[str, Any], path: Path) -> None:
    """Write a run with one row a line, so that a diff shows which cells changed; whole, or not at all."""
    rest = {name: value for name, value in run.items() if name != "benchmarks"}
    rows = ",\n".join(json.dumps(row) for row in run["benchmarks"])
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_text(f'{json.dumps(rest)[:-1]}, "benchmarks": [\n{rows}\n]}}\n')
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)


def read_list(path: Path) -> list[Record]:
    """All records of a saved run; raises InputError where it holds no cells."""
    records = [row["extra_info"] for row in load(path)["benchmarks"] if "cell" in row["extra_info"]]
    if not records:
        raise InputError(f"{path} holds no cells; was it saved by `pytest -m quick`?")
    return records


def read_records(path: Path, profile: str | None = None) -> dict[str, Record]:
    """Records by cell id, all or one profile's."""
    return {record["cell"]: record for record in read_list(path) if profile in (None, record["profile"])}
