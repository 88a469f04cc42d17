"""Saved runs. In: the path of a pytest-benchmark JSON. Out: its records, by cell."""

import json
from pathlib import Path

from lib.errors import InputError
from lib.results.record import SCHEMA_VERSION, Record


def read_records(path: Path, profile: str | None = None) -> dict[str, Record]:
    """Records by cell id, all or one profile's; raises InputError where the file is missing, cut off or holds no cells."""
    try:
        found = json.loads(path.read_text())
        records = [row["extra_info"] for row in found["benchmarks"] if "cell" in row["extra_info"]]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `pytest -m quick --benchmark-json={path}` writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a complete pytest-benchmark JSON ({type(error).__name__}: {error})") from None
    if not records:
        raise InputError(f"{path} holds no cells; was it saved by `pytest -m quick`?")
    odd = sorted({str(record.get("schema_version")) for record in records} - {str(SCHEMA_VERSION)})
    if odd:
        raise InputError(
            f"{path} holds records of schema version {odd[0]}, this tunegrid reads {SCHEMA_VERSION}; run its cells again"
        )
    return {record["cell"]: record for record in records if profile in (None, record["profile"])}
