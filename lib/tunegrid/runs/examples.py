"""Writes and reads Parquet files of data too large for a run's JSON. Needs no torch.

The files hold points and texts of test rows, and figures of modules and instruments. Each file is
named after a hash of its bytes, and the record holds that name. The files are in a folder
`examples` next to the run's JSON, loose or in a zip file. `.cache/examples` also keeps the files of
runs made on this machine.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from tunegrid.errors import InputError, first_line
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import replace_file
from tunegrid.record import ExamplesRecord, Record

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Runs = tuple[Path | None, Path | None]  # the run files that two records came from
STORE = CACHE / "examples"
FOLDER = "examples"
# Text columns by kind of file. The name of a file begins with its kind; points have no kind.
TEXT_COLUMNS = {
    "": ("id", "prediction"),
    "rows": ("input", "reference"),
    "modules": ("phase", "module", "kind", "library"),
    "figures": ("instrument", "figure", "part", "row", "note"),
}
ALL_TEXTS: frozenset[str] = frozenset().union(*TEXT_COLUMNS.values())  # others hold numbers
CONFIDENCE = "confidence"  # the prediction's probability, an unused column in older files
POINT_DIGITS = 4  # decimals; enough to show one token in a hundred
MEAN_ERROR = 10**-POINT_DIGITS  # the most that rounding can shift the mean of points
LONGEST_TEXT = 600  # characters kept of a test row, to recognise it, not to train on it
MOST_ROWS = 2**20  # the full profile has 20,000
MOST_BYTES = 2**28  # the largest file that is read; a full cell's has a tenth of this
MOST_PACKED = 2**30  # the limit for all files in a pack together
TEXT_TYPES = ("BYTE_ARRAY",)  # Parquet's physical types
NUMBER_TYPES = ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOLEAN")
HASH_DIGITS = 20  # in new file names; older names have 16, which are no longer checked


def row_id(row: Mapping[str, Any]) -> str:
    """The first twelve hex digits of a hash of a row's content."""
    return _hash(row)[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# Writing: functions return None if the disk fails, which loses the figures but not the cell


def write(
    ids: list[str],
    points: Mapping[str, Sequence[float]],
    predictions: list[str],
) -> ExamplesRecord | None:
    """Stores points (0 to 100, by metric) and predictions of test rows; returns their record."""
    columns: dict[str, Sequence[Any]] = {"id": ids}
    for name, values in points.items():
        columns[name] = [round(float(value), POINT_DIGITS) for value in values]
    columns["prediction"] = predictions
    file = write_columns("", columns)
    return ExamplesRecord(file=file, rows_hash=_hash(ids)) if file else None


def write_texts(inputs: Sequence[str], references: Sequence[str]) -> str | None:
    """Stores the inputs and targets of test rows and returns the file's name."""
    columns = {
        "input": [text[:LONGEST_TEXT] for text in inputs],
        "reference": [text[:LONGEST_TEXT] for text in references],
    }
    return write_columns("rows", columns)


def write_columns(
    kind: str,
    columns: "Mapping[str, Sequence[Any]] | pd.DataFrame",
) -> str | None:
    """Stores columns as a file of the given kind and returns its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number_type = pa.float64() if kind == "figures" else pa.float32()
    arrays = {}
    for name in columns:
        type_ = pa.string() if name in ALL_TEXTS else number_type
        arrays[name] = pa.array(columns[name], type_, from_pandas=True)
    file = BytesIO()
    pq.write_table(pa.table(arrays), file, compression="zstd")
    content = file.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    name = f"{kind}-{digest}.parquet" if kind else f"{digest}.parquet"
    try:
        keep_contents([(name, content)])
    except OSError:
        return None
    return name


# Reading


def record_files(record: Record) -> dict[str, str]:
    """The names of a record's files, by kind."""
    names: dict[str, str | None] = {}
    if record.training and record.training.first_step:
        names["modules"] = record.training.first_step.modules
    for instrument in record.instruments.values():
        names["figures"] = names.get("figures") or instrument.file  # all instruments share a file
    rows = record.examples
    if rows:
        names[""] = rows.file
        names["rows"] = rows.texts or f"rows-{rows.rows_hash}.parquet"
    return {kind: name for kind, name in names.items() if name}


def read(record: Record, run: Path | None, kind: str = "") -> "pd.DataFrame | None":
    """Reads a record's file of the given kind; None if it is missing.

    Do not modify the frame, since later calls may return it again. Raises InputError if the file is
    damaged or contradicts the record.
    """
    name = record_files(record).get(kind)
    file = _find_file(name, run) if name else None
    if not file:
        return None
    frame = _frame(*file, kind)
    if kind not in ("", "rows"):
        return frame
    source = f"{file[0]}, of {record.cell}"
    rows = record.data.rows["test"] if record.data else len(frame)
    if len(frame) != rows:
        raise InputError(f"{source}: it holds {len(frame)} rows, but the record names {rows}")
    if not kind and record.examples and _hash(frame["id"].tolist()) != record.examples.rows_hash:
        raise InputError(f"{source}: its rows do not match rows_hash")
    if record.status != "passed":
        return frame
    for metric in frame.columns.intersection(list(record.scores)):
        score = record.scores[metric]
        mean = frame[metric].mean()
        if score is not None and not abs(score - mean) <= MEAN_ERROR:
            scores = f"a mean {metric} of {mean:.2f}, but scores.{metric} is {score:.2f}"
            raise InputError(f"{source}: its rows have {scores}")
    return frame


def point_columns(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The columns that hold points."""
    return rows[[name for name in rows.columns if name not in ALL_TEXTS]]


def check_digests(record: Record, run: Path) -> None:
    """Raises InputError if the content of a record's file does not match its name."""
    for name in record_files(record).values():
        file = _find_file(name, run)
        if file:
            _check_content(*file)


def _check_content(path: Path, content: bytes) -> None:
    digest = path.stem.rpartition("-")[2]
    if len(digest) == HASH_DIGITS and hashlib.sha256(content).hexdigest()[:HASH_DIGITS] != digest:
        raise InputError(f"{path} was changed since it was written, or is damaged; remove it")


def _find_file(name: str, *runs: Path | None) -> tuple[Path, bytes] | None:
    """The path and content of a file next to a run or in the store; None if it is not found."""
    folders = [run.parent / FOLDER for run in runs if run]
    for folder in (*folders, STORE):
        path = folder / name
        if path.is_file():
            return path, path.read_bytes()
        for pack in sorted(folder.glob("*.zip")):
            content = _read_pack(pack, pack.stat().st_mtime_ns).get(name)
            if content:
                return pack / name, content
    return None


@lru_cache(maxsize=16)  # one command reads a cell's rows up to 7 times (2 runs of 5 seeds)
def _read_pack(pack: Path, _modified: int) -> dict[str, bytes]:
    try:
        with ZipFile(pack) as files:
            _check_size(sum(entry.file_size for entry in files.infolist()), MOST_PACKED)
            return {name: files.read(name) for name in files.namelist()}
    except Exception as error:  # zipfile raises many kinds
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{pack} is not a pack of examples ({reason}); remove it") from None


@lru_cache(maxsize=512)
def _frame(path: Path, content: bytes, kind: str) -> "pd.DataFrame":
    """A file's content as a frame; raises InputError if it does not match its name or kind."""
    import numpy as np
    import pyarrow as pa

    _check_content(path, content)
    try:
        table = _read_table(content)
        types = {}
        for name in table.column_names:
            types[name] = pa.string() if name in ALL_TEXTS else pa.float64()
        table = table.cast(pa.schema(types))
        table.validate(full=True)  # texts must be UTF-8
        frame: pd.DataFrame = table.to_pandas()
        frame = frame.drop(columns=CONFIDENCE, errors="ignore")
        texts = frame[list(TEXT_COLUMNS[kind])]
        numbers = frame.select_dtypes(float)
        lacks_points = not kind and numbers.isna().any(axis=None)
        if lacks_points or texts.isna().any(axis=None) or np.isinf(numbers).any(axis=None):
            raise InputError("not every row has text and finite numbers")
    except Exception as error:  # damage can raise any exception
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path} does not match its name ({reason}); remove it") from None
    return frame


def _check_size(size: int, most: int) -> None:
    """Raises InputError if `size` exceeds the limit `most`."""
    if size > most:
        raise InputError("it is too large when unpacked")


def _read_table(content: bytes) -> "pa.Table":
    """Reads a Parquet table; raises InputError if it is too large or has a column of a wrong type.

    A few bytes can declare a million copies of one long text, so texts are read as dictionaries,
    and their total length is checked.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(BytesIO(content))
    columns = [file.schema.column(index) for index in range(len(file.schema))]
    for column in columns:
        types = TEXT_TYPES if column.name in ALL_TEXTS else NUMBER_TYPES
        if column.physical_type not in types or column.max_repetition_level:
            raise InputError(f"{column.name} is a column of another type")
    rows = file.metadata.num_rows
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    _check_size(rows, MOST_ROWS)
    _check_size(8 * rows * len(columns), MOST_BYTES)
    _check_size(sum(group.total_byte_size for group in groups), MOST_BYTES)
    texts = [column.name for column in columns if column.name in ALL_TEXTS]
    table = pq.ParquetFile(BytesIO(content), read_dictionary=texts).read(use_threads=False)
    for name in texts:
        for chunk in table[name].chunks:
            lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
            _check_size(pc.sum(lengths).as_py() or 0, MOST_BYTES)
    return table


def file_names(records: Iterable[Record], refused: object = None) -> list[str]:
    """The names of the records' files, and of files named in the JSON of rejected records."""
    names: list[str] = re.findall(r'"((?:\w+-)?[0-9a-f]{20}\.parquet)"', json.dumps(refused))
    for record in records:
        names += record_files(record).values()
    return names


def contents(names: Iterable[str], *runs: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each valid file found next to the runs or in the store."""
    for name in sorted(set(names)):
        kind = name.rpartition("-")[0]
        with suppress(InputError):
            file = _find_file(name, *runs)
            if file:
                _frame(*file, kind)
                yield name, file[1]


def keep_contents(files: Iterable[tuple[str, bytes]]) -> None:
    """Adds files to this machine's store; raises OSError if they cannot be written."""
    for name, content in files:
        path = STORE / name
        if not path.is_file() or path.read_bytes() != content:
            with replace_file(path) as file:
                file.write_bytes(content)


def pack_path(run: Path) -> Path:
    """The path of the pack (a zip file) that holds a run's examples."""
    return run.parent / FOLDER / f"{run.stem}.zip"


def write_pack(files: Mapping[str, bytes], run: Path) -> None:
    """Writes files into a pack next to a run; raises OSError if it cannot be written."""
    if files:
        with replace_file(pack_path(run)) as new_pack, ZipFile(new_pack, "w") as pack:
            for name, content in files.items():
                file = ZipInfo(name)  # has a fixed date, so equal files make an equal pack
                file.external_attr = 0o644 << 16  # otherwise nobody could read the unzipped file
                pack.writestr(file, content, ZIP_DEFLATED, 9)
