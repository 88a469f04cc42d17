"""Per-example scores beside a saved run. In: points and predictions of each row. Out: a small Parquet file, named by its hash.

A record lists its file under `examples`. The file lies in a folder `examples` next to the run's JSON; runs of this machine are
also kept in `.cache/examples`. Needs no torch.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import InputError
from lib.grid.profiles import CACHE
from lib.results.record import Record

STORE = CACHE / "examples"
FOLDER = "examples"
DIGITS = 4  # of points: enough to tell one token of a hundred


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What one cell's test rows scored.

    Attributes:
        ids: a hash of each test row, in order.
        points: 0 to 100 for each row, by metric.
        predictions: text or label of each row.
    """

    ids: Sequence[str]
    points: Mapping[str, Sequence[float]]
    predictions: Sequence[str]

    @property
    def rows_hash(self) -> str:
        """Sixteen hex digits over the ids: equal for equal test rows in equal order."""
        return _hash(list(self.ids))


def row_id(row: Mapping[str, Any]) -> str:
    """Twelve hex digits of a row's content."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write(examples: Examples) -> dict[str, str]:
    """Store the examples; return what the record says of them: the file's name, and the hash of the test rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    points = {name: [round(value, DIGITS) for value in values] for name, values in examples.points.items()}
    columns = {"id": list(examples.ids), **points, "prediction": list(examples.predictions)}
    name = f"{_hash(columns)}.parquet"
    if not (STORE / name).is_file():
        STORE.mkdir(parents=True, exist_ok=True)
        part = STORE / f"{name}.{os.getpid()}.part"  # another process may write the same
        try:
            types = {key: pa.float32() for key in points}
            table = pa.table({key: pa.array(values, types.get(key)) for key, values in columns.items()})
            pq.write_table(table, part, compression="zstd")
            part.replace(STORE / name)
        except OSError as error:
            raise InputError(
                f"cannot keep per-example scores in {STORE} ({error.strerror or error}); make room there"
            ) from None
        finally:
            part.unlink(missing_ok=True)
    return {"file": name, "rows_hash": examples.rows_hash}


def read(record: Record, run: Path | None) -> Examples | None:
    """A record's examples, from beside its run's file or from this machine's store; None where neither has them."""
    import pyarrow.parquet as pq

    told = record.get("examples")
    path = next((place for place in _places(told["file"], run) if place.is_file()), None) if told else None
    if path is None:
        return None
    columns = pq.read_table(path).to_pydict()
    return Examples(ids=columns.pop("id"), predictions=columns.pop("prediction"), points=columns)


def _places(name: str, run: Path | None) -> Iterable[Path]:
    return (*((run.parent / FOLDER / name,) if run else ()), STORE / name)


def keep_beside(records: Iterable[Record], run: Path, source: Path | None = None) -> None:
    """Copy the examples of these records next to a run's file; those that nobody has are left out."""
    for record in records:
        told = record.get("examples")
        found = next((place for place in _places(told["file"], source) if place.is_file()), None) if told else None
        if told and found and found != run.parent / FOLDER / told["file"]:
            (run.parent / FOLDER).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, run.parent / FOLDER / told["file"])
