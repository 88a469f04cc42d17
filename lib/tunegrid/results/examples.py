"""Stores the points and predictions of single test rows beside a saved run, in small Parquet files.

The file is named by the hash of its content; the record's `examples` has the name. It is in a folder `examples` next to the
run's JSON, with one more file per task: what the test rows say (`rows-HASH.parquet`, by the hash of the rows). Runs of this
machine are also kept in `.cache/examples`. Needs no torch.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError
from tunegrid.grid.profiles import CACHE
from tunegrid.record import ExamplesRecord, Record

STORE = CACHE / "examples"
FOLDER = "examples"
TEXT = ("id", "prediction", "reference")  # columns that do not hold points
DIGITS = 4  # of points: enough to tell one token of a hundred
LONGEST_TEXT = 600  # characters of a test row's text that are kept: to recognise the row, not to train on it


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What one cell's test rows scored.

    Attributes:
        ids: a hash of each test row, in order.
        points: 0 to 100 for each row, by metric.
        predictions: text or label of each row.
        references: the true label of each row, where points and predictions do not tell it: with more than two labels.
    """

    ids: Sequence[str]
    points: Mapping[str, Sequence[float]]
    predictions: Sequence[str]
    references: Sequence[str] | None = None

    @property
    def rows_hash(self) -> str:
        """Sixteen hex digits over the ids: equal for equal test rows in equal order."""
        return _hash(list(self.ids))


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the test rows say, for people to read: all cells of a task share one file.

    Attributes:
        inputs: what the model was given, of each row, in the order of its examples.
        references: what it should have answered.
    """

    inputs: Sequence[str]
    references: Sequence[str]


def row_id(row: Mapping[str, Any]) -> str:
    """Twelve hex digits of a row's content."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write(examples: Examples) -> ExamplesRecord:
    """Store the examples; return what the record says of them. Raises InputError where the disk has no room."""
    points = {name: [round(value, DIGITS) for value in values] for name, values in examples.points.items()}
    columns: dict[str, list[Any]] = {"id": list(examples.ids), **points, "prediction": list(examples.predictions)}
    if examples.references is not None:
        columns["reference"] = list(examples.references)
    name = f"{_hash(columns)}.parquet"
    _keep(name, columns, {key: "float32" for key in points})
    return ExamplesRecord(file=name, rows_hash=examples.rows_hash)


def _keep(name: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (STORE / name).is_file():
        return
    STORE.mkdir(parents=True, exist_ok=True)
    part = STORE / f"{name}.{os.getpid()}.part"  # another process may write the same
    try:
        table = pa.table({key: pa.array(values, types.get(key)) for key, values in columns.items()})
        pq.write_table(table, part, compression="zstd")
        part.replace(STORE / name)
    except OSError as error:
        raise InputError(f"cannot keep per-example scores in {STORE} ({error.strerror or error}); make room there") from None
    finally:
        part.unlink(missing_ok=True)


def write_texts(rows_hash: str, texts: Texts) -> None:
    """Store what the rows of this hash say, each text cut to its first characters."""
    columns = {"input": texts.inputs, "reference": texts.references}
    _keep(_texts_name(rows_hash), {name: [cut(text) for text in column] for name, column in columns.items()}, {})


def _texts_name(rows_hash: str) -> str:
    return f"rows-{rows_hash}.parquet"


def cut(text: str) -> str:
    """What is kept of a text: its first characters."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def read_texts(record: Record, run: Path | None) -> Texts | None:
    """What a record's test rows say; None where neither the run nor this machine has kept it, as before tunegrid 0.6."""
    path = _file_of(_texts_name(record.examples.rows_hash), run) if record.examples else None
    return _texts(path) if path else None


@lru_cache(maxsize=16)  # all cells of a task, and all their seeds, share a file
def _texts(path: Path) -> Texts:
    columns = _columns(path)
    return Texts(inputs=columns["input"], references=columns["reference"])


def _columns(path: Path, without: Collection[str] = ()) -> dict[str, list[Any]]:
    """A Parquet file's columns but some; opened as one file, which is sooner done than as a data set of one."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name not in without]
        columns: dict[str, list[Any]] = file.read(names, use_threads=False).to_pydict()
    return columns


def read(record: Record, run: Path | None) -> Examples | None:
    """A record's examples, from the folder next to its run or from this machine's store; None where neither has them."""
    columns = _read(record, run)
    if columns is None:
        return None
    references = columns.pop("reference", None)
    return Examples(ids=columns.pop("id"), predictions=columns.pop("prediction"), references=references, points=columns)


def read_points(record: Record, run: Path | None) -> Mapping[str, Sequence[float]] | None:
    """The points of a record's examples alone, without the text beside them: a gate reads thousands."""
    return _read(record, run, without=TEXT)


def _read(record: Record, run: Path | None, without: Collection[str] = ()) -> dict[str, list[Any]] | None:
    from pyarrow.lib import ArrowException

    path = _file_of(record.examples.file, run) if record.examples else None
    if path is None:
        return None
    try:
        columns = _columns(path, without)
        if missing := {"id", "prediction"}.difference(columns, without):
            raise KeyError(min(missing))
    except (OSError, ArrowException, KeyError) as error:
        raise InputError(f"{path} does not hold points and predictions of rows ({type(error).__name__}); remove it") from None
    return columns


def _file_of(name: str, *runs: Path | None) -> Path | None:
    paths = (*(run.parent / FOLDER / name for run in runs if run), STORE / name)
    return next((path for path in paths if path.is_file()), None)


def files_of(kept: ExamplesRecord) -> tuple[str, str]:
    """The names of the files that hold a record's examples and texts."""
    return kept.file, _texts_name(kept.rows_hash)


def contents(kept: ExamplesRecord) -> dict[str, bytes]:
    """Those files of this machine's store, to be kept on another machine."""
    return {name: (STORE / name).read_bytes() for name in files_of(kept) if (STORE / name).is_file()}


def keep_contents(files: Mapping[str, bytes]) -> None:
    """Store files of another machine; raises OSError where the disk has no room."""
    STORE.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        part = STORE / f"{name}.{os.getpid()}.part"
        part.write_bytes(content)
        part.replace(STORE / name)


def keep_beside(records: Iterable[Record], run: Path, *sources: Path) -> None:
    """Copy the examples of these records, and what their rows say, to the folder next to a run.

    `sources` are the runs they came from. What is next to none of them, and not in this machine's store, is left out.
    """
    kept = [record.examples for record in records if record.examples]
    folder = run.parent / FOLDER
    for name in dict.fromkeys(name for one in kept for name in files_of(one)):
        path = _file_of(name, *sources)
        if path and path != folder / name:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
