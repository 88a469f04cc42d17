"""What is too long for a run's JSON: points and texts of test rows, figures of modules and of instruments, in Parquet files.

Each is named by the hash of its content, which its record holds, and lies in a folder `examples` next to the run's JSON, alone
or in a zip file; those of this machine's runs are in `.cache/examples`, too. Needs no torch.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from tunegrid.errors import InputError, first_line
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import replacing
from tunegrid.record import ExamplesRecord, Record

Runs = tuple[Path | None, Path | None]  # the files of two records; their examples lie beside them, or in this machine's store
STORE = CACHE / "examples"
FOLDER = "examples"
# What a file holds and its columns of text, by how its name begins, which for points is the hash. Others hold numbers.
KINDS = {
    "": ("points and predictions of rows", ("id", "prediction", "reference")),
    "rows": ("inputs and references of rows", ("input", "reference")),
    "modules": ("figures of modules", ("phase", "module", "kind", "library")),
    "figures": ("figures of instruments", ("instrument", "figure", "part", "row", "note")),
}
NUMBERS = {"": "float32", "rows": "float32", "modules": "float32", "figures": "float64"}
NULLABLE = ("modules", "figures")  # not every line has every number
CONFIDENCE = "confidence"  # a column of older files: the prediction's probability, which nobody reads now
DIGITS = 4  # of points: enough to tell one token of a hundred
ROUNDING = 10**-DIGITS  # by which a mean of rounded points may be off
LONGEST_TEXT = 600  # characters of a test row's text that are kept: to recognise the row, not to train on it
MOST_BYTES = 2**28  # unpacked: 20,000 rows of the full profile have 20 MB

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What one cell's test rows scored, in their order."""

    ids: Sequence[str]  # a hash of each row
    points: Mapping[str, Sequence[float]]  # 0 to 100, by metric
    predictions: Sequence[str]  # texts or labels
    references: Sequence[str] | None = None  # true labels, where points and predictions do not tell them: with more than two


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a task's test rows say, in the order of their examples: the model's input, and what it should have answered."""

    inputs: Sequence[str]
    references: Sequence[str]


def row_id(row: Mapping[str, Any]) -> str:
    """Twelve hex digits of a row's content."""
    return _hash(row)[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# Writing: None where the disk takes nothing, which costs the figures, not the cell


def write(examples: Examples) -> ExamplesRecord | None:
    """Store the examples; return what the record says of them."""
    points = {name: [round(float(value), DIGITS) for value in values] for name, values in examples.points.items()}
    columns: dict[str, list[Any]] = {"id": list(examples.ids), **points, "prediction": list(examples.predictions)}
    if examples.references is not None:
        columns["reference"] = list(examples.references)
    file = _store("", columns)
    return ExamplesRecord(file=file, rows_hash=_hash(columns["id"])) if file else None


def write_texts(rows_hash: str, texts: Texts) -> str | None:
    """Store what the rows of this hash say, each text cut to its first characters; return the file's name."""
    columns = {"input": texts.inputs, "reference": texts.references}
    for name, column in columns.items():
        columns[name] = [text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…" for text in column]
    return _store("rows", columns, rows_hash)


def write_modules(columns: Columns) -> str | None:
    """Store figures of modules, one row per call; return the file's name."""
    return _store("modules", columns)


def write_figures(frame: Any) -> str | None:
    """Store what instruments measured; return the file's name."""
    columns = {name: list(frame[name].astype(str)) for name in KINDS["figures"][1]}
    for name in frame.columns.difference(list(columns)):
        columns[name] = [None if value != value else value for value in frame[name].astype(float)]
    return _store("figures", columns)


def _store(start: str, columns: Columns, digest: str = "") -> str | None:
    """Write a file of the store; return its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = "-".join(filter(None, [start, digest or _digest(start, columns)])) + ".parquet"
    types = {column: pa.string() if column in KINDS[start][1] else NUMBERS[start] for column in columns}
    table = pa.table({column: pa.array(values, types[column]) for column, values in columns.items()})
    try:
        with replacing(STORE / name) as part:
            pq.write_table(table, part, compression="zstd")
    except OSError:
        return None
    return name


def _digest(start: str, columns: Columns) -> str:
    """Of texts, and of numbers as the file holds them."""
    texts = {name: list(values) for name, values in columns.items() if name in (*KINDS[start][1], CONFIDENCE)}
    if not start:
        return _hash(
            texts | {name: [round(value, DIGITS) for value in columns[name]] for name in columns.keys() - texts.keys()}
        )
    import numpy as np

    numbers = np.array([columns[name] for name in sorted(columns.keys() - texts.keys())], dtype=NUMBERS[start])  # None is NaN
    digest = hashlib.sha256(json.dumps([texts, sorted(columns)], sort_keys=True).encode())
    digest.update((numbers + np.zeros((), NUMBERS[start])).tobytes())  # no -0.0, which is 0.0
    return digest.hexdigest()[:16]


# Reading: None where neither the run's folder nor this machine's store has the file; InputError where it is not sound


def read(record: Record, run: Path | None) -> Examples | None:
    """A record's examples; raises InputError where the file's rows are not those of the record."""
    path, columns = _rows_of(record, record.examples.file, run) if record.examples else (None, {})
    if record.examples is None or path is None:
        return None
    if _hash(columns["id"]) != record.examples.rows_hash:
        raise InputError(f"{path}, of {record.cell}: it holds other rows than those of rows_hash")
    for name in sorted(columns.keys() & record.scores.keys()) if record.status == "passed" else ():
        score, mean = record.scores[name], fmean(columns[name])
        if score is not None and not abs(score - mean) <= ROUNDING:
            wrong = f"its rows have a mean {name} of {mean:.2f}, but scores.{name} is {score:.2f}"
            raise InputError(f"{path}, of {record.cell}: {wrong}")
    points = {name: values for name, values in columns.items() if name not in (*KINDS[""][1], CONFIDENCE)}
    references = columns.get("reference")
    return Examples(ids=columns["id"], points=points, predictions=columns["prediction"], references=references)


def read_texts(record: Record, run: Path | None) -> Texts | None:
    """What a record's test rows say."""
    name = f"rows-{record.examples.rows_hash}.parquet" if record.examples else None
    _, columns = _rows_of(record, name, run)
    return Texts(inputs=columns["input"], references=columns["reference"]) if columns else None


def read_modules(record: Record, run: Path | None) -> Columns | None:
    """The columns of a record's file of modules."""
    step = record.training.first_step if record.training else None
    return _found(step.modules if step else None, run)[1] or None


def read_figures(record: Record, run: Path | None) -> Columns | None:
    """The same of what its instruments measured."""
    return _found(next((one.file for one in record.instruments.values() if one.file), None), run)[1] or None


def _rows_of(record: Record, name: str | None, run: Path | None) -> tuple[Path | None, Columns]:
    """A file with one line for each of the record's test rows."""
    path, columns = _found(name, run)
    found, named = len(next(iter(columns.values()), ())), record.data.rows["test"] if record.data else None
    if path and named is not None and found != named:
        raise InputError(f"{path}, of {record.cell}: it holds {found} rows, but the record names {named}")
    return path, columns


def _found(name: str | None, *runs: Path | None) -> tuple[Path | None, Columns]:
    """The first sound file of this name, next to a run, alone or in a pack, or in the store, with its columns.

    Raises InputError where there are unsound ones alone.
    """
    if not name:
        return None, {}
    places, faults = list[Path](), list[InputError]()
    for folder in (run.parent / FOLDER for run in runs if run):
        places += [folder, *sorted(folder.glob("*.zip"))]
    for place in (*places, STORE):
        try:
            if columns := _columns(place / name):
                return place / name, columns
        except InputError as fault:
            faults.append(fault)
    if faults:
        raise faults[0]
    return None, {}


def _columns(path: Path) -> Columns:
    """A file's columns, none where it is not there; raises InputError where they are not those that its name says."""
    file = path.parent if path.parent.is_file() else path  # the pack that it is in
    stat = file.stat() if file.exists() else None
    return _columns_once(path, (stat.st_mtime_ns, stat.st_size)) if stat else {}


@lru_cache(maxsize=256)  # one command asks for the rows of a cell up to seven times, of two runs and five seeds
def _columns_once(path: Path, _written: tuple[int, int]) -> Columns:
    start, _, digest = path.stem.rpartition("-")
    start = start if start in KINDS else ""
    try:
        content = _content(path)
        columns = {} if content is None else _values(content, start)
    except Exception as error:  # a damaged file fails wherever it is damaged
        cause = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path} does not hold {KINDS[start][0]} ({cause}); remove it") from None
    if columns and start != "rows" and _digest(start, columns) != digest:
        raise InputError(f"{path} does not hold what it is named for: it was changed or is damaged; remove it")
    return columns


def _content(path: Path) -> bytes | None:
    """A file, alone or in a pack; None where the pack lacks it. Raises InputError before it fills the memory."""
    if not path.parent.is_file():
        if path.stat().st_size <= MOST_BYTES:
            return path.read_bytes()
    else:
        with ZipFile(path.parent) as pack:
            sizes = {file.filename: file.file_size for file in pack.infolist()}
            if sizes.get(path.name, 0) <= MOST_BYTES:
                return pack.read(path.name) if path.name in sizes else None
    raise InputError("unpacked it is too large")


def _values(content: bytes, start: str) -> Columns:
    """The columns of a Parquet file: text in those of its kind, finite numbers in all others.

    Raises InputError where it holds anything else, and before it is unpacked where it is far too large: it may have as many
    rows as bytes, since each row has an id or a text of its own. Else raises whatever pyarrow raises.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    metadata, columns = pq.read_metadata(BytesIO(content)), {}
    texts = [name for name in KINDS[start][1] if name in metadata.schema.names]
    if missing := set(KINDS[start][1]).difference(texts, [] if start else ["reference"]):
        raise InputError(f"{min(missing)} is missing")
    if metadata.num_rows > len(content):
        raise InputError(f"it has {metadata.num_rows} rows in {len(content)} bytes")
    if sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)) > MOST_BYTES:
        raise InputError("unpacked it is too large")
    # A text is held once, however many rows have it: no small file fills the memory.
    table = pq.ParquetFile(BytesIO(content), read_dictionary=texts, metadata=metadata).read(use_threads=False)
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name not in texts:
            fits = pa.types.is_floating(column.type) and pc.all(pc.is_finite(column)).as_py() is not False
        else:
            fits = pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type)
        if not fits or (column.null_count and (name in texts or start not in NULLABLE)):
            raise InputError(f"{name} is not {'text' if name in texts else 'a number'} in every row")
        if name in texts and (pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0) > MOST_BYTES:
            raise InputError("unpacked it is too large")
        columns[name] = column.to_pylist()
    return columns


# Copies


def files_of(record: Record) -> list[str]:
    """The names of the files that hold a record's examples, texts, figures of modules and figures of instruments."""
    rows, step = record.examples, record.training.first_step if record.training else None
    names = [*([rows.file, f"rows-{rows.rows_hash}.parquet"] if rows else ()), step.modules if step else None]
    return [*filter(None, names), *dict.fromkeys(one.file for one in record.instruments.values() if one.file)]


def contents(records: Iterable[Record], *runs: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of those files that are sound, from beside these runs or from this machine's store."""
    for name in sorted({name for record in records for name in files_of(record)}):
        with suppress(InputError):
            path, _ = _found(name, *runs)
            if path and (content := _content(path)):
                yield name, content


def keep_contents(files: Iterable[tuple[str, bytes]], folder: Path | None = None) -> None:
    """Write what is not there to a folder, or this machine's store; raises OSError where the disk has no room."""
    for name, content in files:
        path = (folder or STORE) / name
        if not path.is_file() or path.read_bytes() != content:
            with replacing(path) as part:
                part.write_bytes(content)


def keep_beside(records: Iterable[Record], run: Path, *sources: Path) -> None:
    """Copy the sound files of these records to the folder next to a run, from beside the runs they came from or the store.

    Raises OSError where the disk has no room.
    """
    keep_contents(contents(records, *sources), run.parent / FOLDER)


def pack_beside(records: Iterable[Record], run: Path, *sources: Path) -> None:
    """Write the same into one file in that folder, which takes the place of an older one; equal files make an equal pack."""
    with replacing(run.parent / FOLDER / f"{run.stem}.zip") as part, ZipFile(part, "w") as pack:
        for name, content in contents(records, *sources):
            file = ZipInfo(name)  # of no date
            file.external_attr = 0o644 << 16  # else nobody may read what unzip makes of it
            pack.writestr(file, content, ZIP_DEFLATED, 9)
