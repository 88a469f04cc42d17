"""What is too long for a run's JSON: points and texts of test rows, figures of modules and of instruments, in Parquet files.

Each is named by a hash of its bytes, which its record holds, and lies in a folder `examples` next to the run's JSON, alone or
in a zip file; those of this machine's runs are in `.cache/examples`, too. Read, each is a frame. Needs no torch.
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

Runs = tuple[Path | None, Path | None]  # the files of two records; their examples lie beside them, or in this machine's store
STORE = CACHE / "examples"
FOLDER = "examples"
# By how a file's name begins, which for points of rows is the hash: columns of text that it must have.
TEXTS = {
    "": ("id", "prediction"),
    "rows": ("input", "reference"),
    "modules": ("phase", "module", "kind", "library"),
    "figures": ("instrument", "figure", "part", "row", "note"),
}
ALL_TEXTS = frozenset(name for names in TEXTS.values() for name in names)  # every other column holds numbers
CONFIDENCE = "confidence"  # a column of older points: the prediction's probability, which nobody reads now
DIGITS = 4  # of points: enough to tell one token of a hundred
ROUNDING = 10**-DIGITS  # by which a mean of rounded points may be off
LONGEST_TEXT = 600  # characters of a test row's text that are kept: to recognise the row, not to train on it
MOST_ROWS = 2**20  # the full profile has 20,000
MOST_BYTES = 2**28  # of a file when it is read; that of a full cell has a tenth
MOST_PACKED = 2**30  # of all files in a pack
TEXT_TYPES = ("BYTE_ARRAY",)  # as Parquet stores them
NUMBER_TYPES = ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOLEAN")
HASH_DIGITS = 20  # of a file's bytes; names of version 0.17 and before have 16, of a hash that is not checked any more


def row_id(row: Mapping[str, Any]) -> str:
    """Twelve hex digits of a row's content."""
    return _hash(row)[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# Writing: None if the disk takes nothing, which costs the figures, not the cell


def write(ids: list[str], points: Mapping[str, Sequence[float]], predictions: list[str]) -> ExamplesRecord | None:
    """Store what one cell's test rows scored, 0 to 100 by metric, in their order; return what the record says of them."""
    rounded = {name: [round(float(value), DIGITS) for value in values] for name, values in points.items()}
    file = write_columns("", {"id": ids, **rounded, "prediction": predictions})
    return ExamplesRecord(file=file, rows_hash=_hash(ids)) if file else None


def write_texts(inputs: Sequence[str], references: Sequence[str]) -> str | None:
    """Store the model's input and what it should answer, of each test row; return the file's name."""
    columns = {
        "input": [text[:LONGEST_TEXT] for text in inputs],
        "reference": [text[:LONGEST_TEXT] for text in references],
    }
    return write_columns("rows", columns)


def write_columns(kind: str, columns: "Mapping[str, Sequence[Any]] | pd.DataFrame") -> str | None:
    """Store a file of this kind; return its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers, file = pa.float64() if kind == "figures" else pa.float32(), BytesIO()
    types = {name: pa.string() if name in ALL_TEXTS else numbers for name in columns}
    table = pa.table({name: pa.array(columns[name], type_, from_pandas=True) for name, type_ in types.items()})
    pq.write_table(table, file, compression="zstd")
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:HASH_DIGITS]
    name = "-".join(filter(None, [kind, digest])) + ".parquet"
    try:
        keep_contents([(name, file.getvalue())])
    except OSError:
        return None
    return name


# Reading


def record_files(record: Record) -> dict[str, str]:
    """The names of a record's files, by kind."""
    rows, step = record.examples, record.training.first_step if record.training else None
    figures = next((one.file for one in record.instruments.values() if one.file), None)  # all instruments share a file
    names = {"modules": step.modules if step else None, "figures": figures}
    names |= {"": rows.file, "rows": rows.texts or f"rows-{rows.rows_hash}.parquet"} if rows else {}
    return {kind: name for kind, name in names.items() if name}


def read(record: Record, run: Path | None, kind: str = "") -> "pd.DataFrame | None":
    """A record's file of this kind, as a frame that readers share; None if it is nowhere. Raises InputError if unsound."""
    if not (name := record_files(record).get(kind)) or not (file := _find_file(name, run)):
        return None
    path, frame = f"{file[0]}, of {record.cell}", _frame(*file, kind)
    if kind not in ("", "rows"):
        return frame
    rows = record.data.rows["test"] if record.data else len(frame)
    if len(frame) != rows:
        raise InputError(f"{path}: it holds {len(frame)} rows, but the record names {rows}")
    if not kind and record.examples and _hash(frame["id"].tolist()) != record.examples.rows_hash:
        raise InputError(f"{path}: its rows do not match rows_hash")
    for metric in frame.columns.intersection(list(record.scores)) if record.status == "passed" else ():
        score, mean = record.scores[metric], frame[metric].mean()
        if score is not None and not abs(score - mean) <= ROUNDING:
            raise InputError(f"{path}: its rows have a mean {metric} of {mean:.2f}, but scores.{metric} is {score:.2f}")
    return frame


def point_columns(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The columns of points."""
    return rows[[name for name in rows.columns if name not in ALL_TEXTS]]


def check_files(record: Record, run: Path) -> None:
    """Raises InputError if a file of a record has other content than its name says."""
    for name in record_files(record).values():
        if file := _find_file(name, run):
            _check_content(*file)


def _check_content(path: Path, content: bytes) -> None:
    digest = path.stem.rpartition("-")[2]
    if len(digest) == HASH_DIGITS and hashlib.sha256(content).hexdigest()[:HASH_DIGITS] != digest:
        raise InputError(f"{path} was changed since it was written, or is damaged; remove it")


def _find_file(name: str, *runs: Path | None) -> tuple[Path, bytes] | None:
    """The first file of this name: next to a run, alone or in a pack, or in the store."""
    for folder in (*(run.parent / FOLDER for run in runs if run), STORE):
        if (path := folder / name).is_file():
            return path, path.read_bytes()
        for pack in sorted(folder.glob("*.zip")):
            if content := _read_pack(pack, pack.stat().st_mtime_ns).get(name):
                return pack / name, content
    return None


@lru_cache(maxsize=16)  # one command asks for the rows of a cell up to seven times, of two runs and five seeds
def _read_pack(pack: Path, _modified: int) -> dict[str, bytes]:
    try:
        with ZipFile(pack) as files:
            _check_size(sum(entry.file_size for entry in files.infolist()), MOST_PACKED)
            return {name: files.read(name) for name in files.namelist()}
    except Exception as error:  # zipfile's are of many kinds
        raise InputError(f"{pack} is not a pack of examples ({type(error).__name__}: {first_line(error)}); remove it") from None


@lru_cache(maxsize=512)
def _frame(path: Path, content: bytes, kind: str) -> "pd.DataFrame":
    """The frame in a file; raises InputError if it is not what the file's name says."""
    import numpy as np
    import pyarrow as pa

    _check_content(path, content)
    try:
        table = _read_table(content)
        types = {name: pa.string() if name in ALL_TEXTS else pa.float64() for name in table.column_names}
        frame: pd.DataFrame = table.cast(pa.schema(types)).to_pandas().drop(columns=CONFIDENCE, errors="ignore")
        texts, numbers = frame[list(TEXTS[kind])], frame.select_dtypes(float)
        if texts.isna().to_numpy().any() or np.isinf(numbers).any(axis=None) or (not kind and numbers.isna().any(axis=None)):
            raise InputError("not every row has text and finite numbers")
    except Exception as error:  # a damaged file fails wherever it is damaged
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path} does not match its name ({reason}); remove it") from None
    return frame


def _check_size(size: int, most: int) -> None:
    """Raises InputError for what has more than so many bytes."""
    if size > most:
        raise InputError("it is too large when unpacked")


def _read_table(content: bytes) -> "pa.Table":
    """A Parquet file's table; raises InputError, before any memory is taken, if it is larger than any of ours.

    A few bytes may say that one long text stands in a million rows: texts are read as numbers of a dictionary.
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
    """The names of all files of records, and of those in the JSON of refused ones."""
    names: list[str] = re.findall(r'"((?:\w+-)?[0-9a-f]{20}\.parquet)"', json.dumps(refused))
    for record in records:
        names += record_files(record).values()
    return names


def contents(names: Iterable[str], *runs: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of those files that are sound, from beside these runs or from this machine's store."""
    for name in sorted(set(names)):
        kind = name.rpartition("-")[0]
        with suppress(InputError):
            if file := _find_file(name, *runs):
                _frame(*file, kind)
                yield name, file[1]


def keep_contents(files: Iterable[tuple[str, bytes]]) -> None:
    """Write what is not there to this machine's store; raises OSError if the disk has no room."""
    for name, content in files:
        if not (path := STORE / name).is_file() or path.read_bytes() != content:
            with replace_file(path) as part:
                part.write_bytes(content)


def pack_path(run: Path) -> Path:
    """Where the examples of a run's file lie."""
    return run.parent / FOLDER / f"{run.stem}.zip"


def write_pack(files: Mapping[str, bytes], run: Path) -> None:
    """Write these files into a pack next to a run; raises OSError if the disk has no room."""
    if files:
        with replace_file(pack_path(run)) as part, ZipFile(part, "w") as pack:
            for name, content in files.items():
                file = ZipInfo(name)  # of no date: equal files make an equal pack
                file.external_attr = 0o644 << 16  # else nobody may read what unzip makes of it
                pack.writestr(file, content, ZIP_DEFLATED, 9)
