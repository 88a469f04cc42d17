"""Stores the points and predictions of single test rows beside a saved run, in small Parquet files.

The file is named by the hash of its content; the record's `examples` has the name. It is in a folder `examples` next to the
run's JSON, with one more file per task: what the test rows say (`rows-HASH.parquet`, by the hash of the rows); and more per
cell and seed: figures of the model's modules (`modules-HASH.parquet`, for `tunegrid.results.modules`), and those of instruments
(`figures-HASH.parquet`, for `tunegrid.results.figures`). Runs of this machine are also kept in `.cache/examples`; those of a
baseline are packed into one zip file there. Needs no torch.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import SEEK_END, BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from tunegrid.errors import InputError, first_line
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import replacing
from tunegrid.record import ExamplesRecord, Record

STORE = CACHE / "examples"
FOLDER = "examples"
CONFIDENCE = "confidence"  # a column of older files: the prediction's probability, which nobody reads now
DIGITS = 4  # of points: enough to tell one token of a hundred
ROUNDING = 10**-DIGITS  # by which a mean of rounded points may be off
LONGEST_TEXT = 600  # characters of a test row's text that are kept: to recognise the row, not to train on it
MOST_BYTES = 2**28  # unpacked: 20,000 rows of the full profile have 20 MB


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: what it holds in words, its columns of text, and the type of all others, which hold numbers."""

    holds: str = "points and predictions of rows"
    text: tuple[str, ...]
    number: str = "float32"
    nullable: bool = False


POINTS = Kind(text=("id", "prediction", "reference"))
TEXTS = Kind(text=("input", "reference"))
MODULES = Kind(holds="figures of modules", text=("phase", "module", "kind", "library"), nullable=True)
FIGURES = Kind(
    holds="figures of instruments", text=("instrument", "figure", "part", "row", "note"), number="float64", nullable=True
)
KINDS = {"rows": TEXTS, "modules": MODULES, "figures": FIGURES}  # by how the names of files begin; all others hold points


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
    return _hash(row)[:12]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write(examples: Examples) -> ExamplesRecord:
    """Store the examples; return what the record says of them. Raises OSError where the disk has no room."""
    points = {name: [round(float(value), DIGITS) for value in values] for name, values in examples.points.items()}
    columns: dict[str, list[Any]] = {"id": list(examples.ids), **points, "prediction": list(examples.predictions)}
    if examples.references is not None:
        columns["reference"] = list(examples.references)
    return ExamplesRecord(file=_store(f"{_hash(columns)}.parquet", columns), rows_hash=_hash(columns["id"]))


def write_texts(rows_hash: str, texts: Texts) -> None:
    """Store what the rows of this hash say, each text cut to its first characters."""
    inputs, references = (
        [text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…" for text in column]
        for column in (texts.inputs, texts.references)
    )
    _store(f"rows-{rows_hash}.parquet", {"input": inputs, "reference": references})


def write_modules(columns: Mapping[str, Sequence[Any]]) -> str:
    """Store figures of modules, one row per call; return the file's name. Raises OSError where the disk has no room."""
    return _store(_figures_name("modules", columns), columns)


def write_figures(frame: Any) -> str:
    """Store what instruments measured; return the file's name. Raises OSError where the disk has no room."""
    columns = {name: list(frame[name].astype(str)) for name in FIGURES.text}
    for name in (name for name in frame if name not in FIGURES.text):
        columns[name] = [None if value != value else value for value in frame[name].astype(float)]
    return _store(_figures_name("figures", columns), columns)


def _figures_name(start: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """By the hash of texts, and of numbers as the file holds them: it has 20,000 of some cells."""
    import numpy as np

    kind = KINDS[start]
    texts = {name: list(values) for name, values in columns.items() if name in kind.text}
    numbers = np.array([columns[name] for name in sorted(columns.keys() - set(kind.text))], dtype=kind.number)  # None is NaN
    digest = hashlib.sha256(json.dumps([texts, sorted(columns)], sort_keys=True).encode())
    digest.update((numbers + np.zeros((), kind.number)).tobytes())  # no -0.0, which is 0.0
    return f"{start}-{digest.hexdigest()[:16]}.parquet"


def _store(name: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """Write a file of the store, unless it is there and sound; return its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not _is_sound(STORE / name):
        kind = KINDS.get(name.partition("-")[0], POINTS)
        types = {key: None if key in kind.text else kind.number for key in columns}
        with replacing(STORE / name) as part:
            table = pa.table({key: pa.array(values, types[key]) for key, values in columns.items()})
            pq.write_table(table, part, compression="zstd")
    return name


def read(record: Record, run: Path | None) -> Examples | None:
    """A record's examples, from the folder next to its run or from this machine's store; None where neither has them.

    Raises InputError, one sentence, where the file's rows are not those that it is named for, or not those of the record.
    """
    path = _file_of(record.examples.file, run) if record.examples else None
    if record.examples is None or path is None:
        return None
    columns = dict(_columns(path, record.data.rows["test"] if record.data else None))
    sentence = None
    if _hash(columns["id"]) != record.examples.rows_hash:
        sentence = "it holds other rows than those of rows_hash"
    elif record.status == "passed":
        for name in sorted(columns.keys() & record.scores.keys(), reverse=True):
            score, mean = record.scores[name], fmean(columns[name])
            if score is not None and not abs(score - mean) <= ROUNDING:
                sentence = f"its rows have a mean {name} of {mean:.2f}, but scores.{name} is {score:.2f}"
    if sentence:
        raise InputError(f"{path}, of {record.cell}: {sentence}")
    columns.pop(CONFIDENCE, None)
    references = columns.pop("reference", None)
    return Examples(ids=columns.pop("id"), predictions=columns.pop("prediction"), references=references, points=columns)


def read_texts(record: Record, run: Path | None) -> Texts | None:
    """What a record's test rows say; None where neither the run nor this machine has kept it, as before tunegrid 0.6."""
    path = _file_of(f"rows-{record.examples.rows_hash}.parquet", run) if record.examples else None
    if path is None:
        return None
    columns = _columns(path, record.data.rows["test"] if record.data else None)
    return Texts(inputs=columns["input"], references=columns["reference"])


def read_modules(record: Record, run: Path | None) -> Mapping[str, Sequence[Any]] | None:
    """The columns of a record's file of modules, or None; raises InputError where they are not those that it is named for."""
    step = record.training.first_step if record.training else None
    path = _file_of(step.modules, run) if step and step.modules else None
    return _columns(path) if path else None


def read_figures(record: Record, run: Path | None) -> Mapping[str, Sequence[Any]] | None:
    """The same of what its instruments measured."""
    path = next((_file_of(one.file, run) for one in record.instruments.values() if one.file), None)
    return _columns(path) if path else None


def _columns(path: Path, rows: int | None = None) -> Mapping[str, list[Any]]:
    """A file's columns; raises InputError where they are not those that its name says. It must hold `rows`, if given."""
    file = path.parent if path.parent.is_file() else path  # the pack that it is in
    stat = file.stat() if file.exists() else None
    return _columns_once(path, rows, stat and (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=256)  # one command asks for the rows of a cell up to seven times, of two runs and five seeds
def _columns_once(path: Path, rows: int | None, _written: tuple[int, int] | None) -> Mapping[str, list[Any]]:
    start = path.name.partition("-")[0]
    kind = KINDS.get(start, POINTS)
    try:
        columns = _values(path, kind, rows)
    except Exception as error:  # a damaged file fails wherever it is damaged
        cause = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path} does not hold {kind.holds} ({cause}); remove it") from None
    if kind is TEXTS:
        if columns.keys() != set(TEXTS.text):
            raise InputError(f"{path} does not hold inputs and references of rows; remove it")
    elif kind is POINTS:
        if missing := {"id", "prediction"}.difference(columns):
            raise InputError(f"{path} does not hold {kind.holds} ({min(missing)} is missing); remove it")
        names = (name for name in columns if name not in (*POINTS.text, CONFIDENCE))
        if _hash(columns | {name: [round(value, DIGITS) for value in columns[name]] for name in names}) != path.stem:
            raise InputError(f"{path} does not hold the rows that it is named for: it was changed or is damaged; remove it")
    elif _figures_name(start, columns) != path.name:
        raise InputError(f"{path} does not hold the figures that it is named for: it was changed or is damaged; remove it")
    return columns


def _values(path: Path, kind: Kind, rows: int | None) -> dict[str, list[Any]]:
    """A file's columns: text in those of its kind, finite numbers in all others.

    Raises InputError where it holds anything else, and before it is unpacked where it is far too large: without `rows`, it may
    have as many as it has bytes, since each row has an id or a text of its own. Else raises whatever zipfile and pyarrow raise.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with opened(path) as file:
        metadata, size = pq.read_metadata(file), file.seek(0, SEEK_END)
        if rows is not None and metadata.num_rows != rows:
            raise InputError(f"it holds {metadata.num_rows} rows, but the record names {rows}")
        if metadata.num_rows > size:
            raise InputError(f"it has {metadata.num_rows} rows in {size} bytes")
        if sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)) > MOST_BYTES:
            raise InputError("unpacked it is too large")
        shared = [name for name in kind.text if name in metadata.schema.names]  # held once: no small file fills the memory
        table = pq.ParquetFile(file, read_dictionary=shared, metadata=metadata).read(use_threads=False)
    values = {}
    for name in table.column_names:
        column, is_text = table[name].combine_chunks(), name in kind.text
        held = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        fits = pa.types.is_string(held) if is_text else pa.types.is_floating(held)
        if not fits or (column.null_count and (is_text or not kind.nullable)):
            raise InputError(f"{name} is not {'text' if is_text else 'a number'} in every row")
        if is_text and (pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0) > MOST_BYTES:
            raise InputError("unpacked it is too large")
        if not is_text and pc.all(pc.is_finite(column)).as_py() is False:
            raise InputError(f"{name} is not a number in every row")
        values[name] = column.to_pylist()
    return values


def opened(path: Path) -> BinaryIO:
    """A file, alone or in a pack; raises InputError where that would fill the memory, and whatever zipfile raises."""
    if not path.parent.is_file():
        return path.open("rb")
    with ZipFile(path.parent) as pack:
        if pack.getinfo(path.name).file_size > MOST_BYTES:
            raise InputError("unpacked it is too large")
        return BytesIO(pack.read(path.name))


def is_kept(path: Path) -> bool:
    """Whether a file is there, alone or in a pack; who reads one of a damaged pack is told so."""
    if not path.parent.is_file():
        return path.is_file()
    try:
        with ZipFile(path.parent) as pack:
            return path.name in pack.namelist()
    except Exception:  # wherever it is damaged
        return True


def _is_sound(path: Path) -> bool:
    """Whether a file is there and holds what its name says; of texts, which are named by their rows, whether it can be read."""
    try:
        return bool(_columns(path))
    except InputError:
        return False


def _file_of(name: str, *runs: Path | None) -> Path | None:
    """The file of this name, next to a run, alone or in a pack, or in the store; of several the first that is sound."""
    folders = [run.parent / FOLDER for run in runs if run]
    places = [place / name for folder in folders for place in (folder, *sorted(folder.glob("*.zip")))]
    paths = [path for path in (*places, STORE / name) if is_kept(path)]
    return next(filter(_is_sound, paths), paths[0]) if len(paths) > 1 else next(iter(paths), None)


def files_of(record: Record) -> list[str]:
    """The names of the files that hold a record's examples, texts, figures of modules and figures of instruments."""
    rows, step = record.examples, record.training.first_step if record.training else None
    return [
        *([rows.file, f"rows-{rows.rows_hash}.parquet"] if rows else ()),
        *([step.modules] if step and step.modules else ()),
        *dict.fromkeys(one.file for one in record.instruments.values() if one.file),
    ]


def contents(records: Iterable[Record], *runs: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of those files that are sound, from beside these runs or from this machine's store."""
    for name in sorted({name for record in records for name in files_of(record)}):
        if (path := _file_of(name, *runs)) and _is_sound(path):
            with opened(path) as file:
                yield name, file.read()


def keep_contents(files: Iterable[tuple[str, bytes]], folder: Path | None = None) -> None:
    """Write what is not there and sound to a folder, or this machine's store; raises OSError where the disk has no room."""
    for name, content in files:
        if not _is_sound(path := (folder or STORE) / name):
            with replacing(path) as part:
                part.write_bytes(content)


def keep_beside(records: Iterable[Record], run: Path, *sources: Path) -> None:
    """Copy the examples of these records, what their rows say, and figures of modules to the folder next to a run.

    `sources` are the runs they came from. What is next to none of them, and not in this machine's store, is left out. What lies
    there and is sound stays; a broken file is no source. Raises OSError where the disk has no room.
    """
    keep_contents(contents(records, *sources), run.parent / FOLDER)


def pack_beside(records: Iterable[Record], run: Path, *sources: Path) -> None:
    """Write the same into one file in that folder, which takes the place of an older one; equal files make an equal pack."""
    with replacing(run.parent / FOLDER / f"{run.stem}.zip") as part, ZipFile(part, "w") as pack:
        for name, content in contents(records, *sources):
            file = ZipInfo(name)  # of no date
            file.external_attr = 0o644 << 16  # else nobody may read what unzip makes of it
            pack.writestr(file, content, ZIP_DEFLATED, 9)
