"""Stores the points and predictions of single test rows beside a saved run, in small Parquet files.

The file is named by the hash of its content; the record's `examples` has the name. It is in a folder `examples` next to the
run's JSON, with one more file per task: what the test rows say (`rows-HASH.parquet`, by the hash of the rows); and more per
cell and seed: figures of the model's modules (`modules-HASH.parquet`, for `tunegrid.results.modules`), and those of instruments
(`figures-HASH.parquet`, for `tunegrid.results.figures`). Runs of this machine are also kept in `.cache/examples`; those of a
baseline are packed into one zip file there. Needs no torch.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import SEEK_END, BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from tunegrid.errors import InputError, first_line
from tunegrid.grid.profiles import CACHE
from tunegrid.machine import replacing
from tunegrid.record import ExamplesRecord, Record

HOLDS = "points and predictions of rows"
MOST_BYTES = 2**28  # unpacked: 20,000 rows of the full profile have 20 MB


def is_kept(path: Path) -> bool:
    """Whether a file is there, alone or in a pack; who reads one of a damaged pack is told so."""
    if not path.parent.is_file():
        return path.is_file()
    try:
        with ZipFile(path.parent) as pack:
            return path.name in pack.namelist()
    except Exception:  # wherever it is damaged
        return True


def opened(path: Path) -> BinaryIO:
    """A file, alone or in a pack; raises InputError where that would fill the memory, and whatever zipfile raises."""
    if not path.parent.is_file():
        return path.open("rb")
    with ZipFile(path.parent) as pack:
        if pack.getinfo(path.name).file_size > MOST_BYTES:
            raise InputError("unpacked it is too large")
        return BytesIO(pack.read(path.name))


def read_columns(
    path: Path, text: Collection[str], rows: int | None = None, *, nullable: bool = False, holds: str = HOLDS
) -> dict[str, list[Any]]:
    """A file's columns: text in those named, finite numbers in all others.

    Args:
        path: of the file.
        text: columns that hold text, where they are there.
        rows: how many it must hold; None: as many as it can hold, since each row has an id or a text of its own.
        nullable: whether a number may be missing.
        holds: what the file is to hold, in words.

    Raises:
        InputError: where it cannot be read, or holds anything else; before it is unpacked where it is far too large.
    """
    import pyarrow.parquet as pq

    try:
        with opened(path) as file:
            metadata = pq.read_metadata(file)
            _check_size(metadata, rows, file.seek(0, SEEK_END))
            shared = [name for name in text if name in metadata.schema.names]  # held once: no small file fills the memory
            table = pq.ParquetFile(file, read_dictionary=shared, metadata=metadata).read(use_threads=False)
        return {name: _values(table[name].combine_chunks(), name, name in text, nullable) for name in table.column_names}
    except Exception as error:  # a damaged file fails wherever it is damaged
        raise InputError(f"{path} does not hold {holds} ({_cause(error)}); remove it") from None


def _check_size(metadata: Any, rows: int | None, size: int) -> None:
    if rows is not None and metadata.num_rows != rows:
        raise InputError(f"it holds {metadata.num_rows} rows, but the record names {rows}")
    if metadata.num_rows > size:
        raise InputError(f"it has {metadata.num_rows} rows in {size} bytes")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if sum(group.total_byte_size for group in groups) > MOST_BYTES:
        raise InputError("unpacked it is too large")


def _values(column: Any, name: str, is_text: bool, nullable: bool) -> list[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if (column.null_count and (is_text or not nullable)) or not (
        pa.types.is_string(kind) if is_text else pa.types.is_floating(kind)
    ):
        raise InputError(f"{name} is not {'text' if is_text else 'a number'} in every row")
    if is_text and (pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0) > MOST_BYTES:
        raise InputError("unpacked it is too large")
    if not is_text and pc.all(pc.is_finite(column)).as_py() is False:
        raise InputError(f"{name} is not a number in every row")
    values: list[Any] = column.to_pylist()
    return values


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"


STORE = CACHE / "examples"
FOLDER = "examples"
TEXT = ("id", "prediction", "reference")  # columns that do not hold points
CONFIDENCE = "confidence"  # a column of files of before tunegrid 0.17: the prediction's probability, which nobody reads now
TEXTS = ("input", "reference")  # of a file of what rows say
DIGITS = 4  # of points: enough to tell one token of a hundred
ROUNDING = 10**-DIGITS  # by which a mean of rounded points may be off
ROWS = "rows-"  # how the names of files begin that hold what rows say
MODULES = "modules-"  # and of those that hold figures of modules
OF_MODULE = ("phase", "module", "kind", "library")  # their columns that do not hold figures
FIGURES = "figures-"  # and of those that hold what instruments measured
OF_FIGURE = ("instrument", "figure", "part", "row", "note")  # the same of these
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
    """Store the examples; return what the record says of them. Raises OSError where the disk has no room."""
    points = {name: [round(float(value), DIGITS) for value in values] for name, values in examples.points.items()}
    columns: dict[str, list[Any]] = {"id": list(examples.ids), **points, "prediction": list(examples.predictions)}
    if examples.references is not None:
        columns["reference"] = list(examples.references)
    name = f"{_hash(columns)}.parquet"
    _keep(name, columns, {key: "float32" for key in points})
    return ExamplesRecord(file=name, rows_hash=examples.rows_hash)


def _keep(name: str, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> None:
    """Write a file of the store, unless it is there and sound."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _is_sound(STORE / name):
        return
    table = pa.table({key: pa.array(values, types.get(key)) for key, values in columns.items()})
    with replacing(STORE / name) as part:
        pq.write_table(table, part, compression="zstd")


def write_texts(rows_hash: str, texts: Texts) -> None:
    """Store what the rows of this hash say, each text cut to its first characters."""
    columns = {"input": texts.inputs, "reference": texts.references}
    _keep(_texts_name(rows_hash), {name: [cut(text) for text in column] for name, column in columns.items()}, {})


def _texts_name(rows_hash: str) -> str:
    return f"{ROWS}{rows_hash}.parquet"


def cut(text: str) -> str:
    """What is kept of a text: its first characters."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def read_texts(record: Record, run: Path | None) -> Texts | None:
    """What a record's test rows say; None where neither the run nor this machine has kept it, as before tunegrid 0.6."""
    path = _file_of(_texts_name(record.examples.rows_hash), run) if record.examples else None
    return _texts(path, _rows_of(record)) if path else None


@lru_cache(maxsize=16)  # all cells of a task, and all their seeds, share a file
def _texts(path: Path, rows: int | None = None) -> Texts:
    columns = read_columns(path, TEXTS, rows)
    if columns.keys() != set(TEXTS):
        raise InputError(f"{path} does not hold inputs and references of rows; remove it")
    return Texts(inputs=columns["input"], references=columns["reference"])


def _rows_of(record: Record) -> int | None:
    """How many test rows a record names."""
    return record.data.rows["test"] if record.data else None


def read(record: Record, run: Path | None) -> Examples | None:
    """A record's examples, from the folder next to its run or from this machine's store; None where neither has them."""
    columns = _read(record, run)
    if columns is None:
        return None
    columns.pop(CONFIDENCE, None)
    references = columns.pop("reference", None)
    return Examples(ids=columns.pop("id"), predictions=columns.pop("prediction"), references=references, points=columns)


def check(record: Record, run: Path | None) -> None:
    """Raises InputError where the rows of a record are not those that it was made of."""
    _read(record, run)


def _read(record: Record, run: Path | None) -> dict[str, list[Any]] | None:
    """The columns of a record's file, which are held to its name and to the record: raises InputError, one sentence.

    A broken file gives way to a sound one of the same name.
    """
    path = _file_of(record.examples.file, run) if record.examples else None
    if path is None:
        return None
    columns = _columns_of_name(path, _rows_of(record))
    for sentence in _contradictions(record, columns):
        raise InputError(f"{path}, of {record.cell}: {sentence}")
    return dict(columns)


def _columns_of_name(path: Path, rows: int | None = None) -> Mapping[str, list[Any]]:
    """The columns of a file that is named by their hash; raises InputError where they are others."""
    file = path.parent if path.parent.is_file() else path  # the pack that it is in
    stat = file.stat() if file.exists() else None
    return _read_once(path, rows, stat and (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=256)  # one command asks for the rows of a cell up to seven times, of two runs and five seeds
def _read_once(path: Path, rows: int | None, _written: tuple[int, int] | None) -> Mapping[str, list[Any]]:
    columns = read_columns(path, TEXT, rows)
    if missing := {"id", "prediction"}.difference(columns):
        raise InputError(f"{path} does not hold points and predictions of rows ({min(missing)} is missing); remove it")
    points = {name: [round(value, DIGITS) for value in columns[name]] for name in columns if name not in (*TEXT, CONFIDENCE)}
    content = _hash(columns | points)
    if content != path.stem:
        raise InputError(f"{path} does not hold the rows that it is named for: it was changed or is damaged; remove it")
    return columns


def _contradictions(record: Record, columns: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Sentences on rows that are not the record's: others than it names, another number, or another mean than its scores."""
    assert record.examples, "the file is named by them"
    ids = columns["id"]
    if _hash(list(ids)) != record.examples.rows_hash:
        yield "it holds other rows than those of rows_hash"
    if record.status != "passed":
        return
    for name in columns.keys() & record.scores.keys():
        score, mean = record.scores[name], fmean(columns[name])
        if score is not None and not abs(score - mean) <= ROUNDING:
            yield f"its rows have a mean {name} of {mean:.2f}, but scores.{name} is {score:.2f}"


def write_modules(columns: Mapping[str, Sequence[Any]]) -> str:
    """Store figures of modules, one row per call; return the file's name. Raises OSError where the disk has no room."""
    name = _name_of(MODULES, columns, OF_MODULE, "float32")
    _keep(name, columns, {key: "float32" for key in columns if key not in OF_MODULE})
    return name


def write_figures(frame: Any) -> str:
    """Store what instruments measured; return the file's name. Raises OSError where the disk has no room."""
    numbers = [name for name in frame if name not in OF_FIGURE]
    columns = {name: list(frame[name].astype(str)) for name in OF_FIGURE}
    columns |= {name: [None if value != value else value for value in frame[name].astype(float)] for name in numbers}
    name = _name_of(FIGURES, columns, OF_FIGURE, "float64")
    _keep(name, columns, dict.fromkeys(numbers, "float64"))
    return name


def _name_of(start: str, columns: Mapping[str, Sequence[Any]], text: Collection[str], kind: str) -> str:
    """By the hash of texts, and of numbers as the file holds them: it has 20,000 of some cells."""
    import numpy as np

    texts = {name: list(values) for name, values in columns.items() if name in text}
    numbers = np.array([columns[name] for name in sorted(columns.keys() - set(text))], dtype=kind)  # None is NaN
    digest = hashlib.sha256(json.dumps([texts, sorted(columns)], sort_keys=True).encode())
    digest.update((numbers + np.zeros((), kind)).tobytes())  # no -0.0, which is 0.0
    return f"{start}{digest.hexdigest()[:16]}.parquet"


def read_modules(record: Record, run: Path | None) -> Mapping[str, Sequence[Any]] | None:
    """The columns that a record's file of modules holds; None where neither the run nor this machine has it.

    Raises:
        InputError: where the file does not hold what it is named for.
    """
    step = record.training.first_step if record.training else None
    path = _file_of(step.modules, run) if step and step.modules else None
    return _modules(path) if path else None


def read_figures(record: Record, run: Path | None) -> Mapping[str, Sequence[Any]] | None:
    """The same of what its instruments measured."""
    path = next((_file_of(one.file, run) for one in record.instruments.values() if one.file), None)
    return _figures(path) if path else None


def _modules(path: Path) -> dict[str, list[Any]]:
    return _named(path, MODULES, OF_MODULE, "float32", "figures of modules")


def _figures(path: Path) -> dict[str, list[Any]]:
    return _named(path, FIGURES, OF_FIGURE, "float64", "figures of instruments")


def _named(path: Path, start: str, text: Collection[str], kind: str, holds: str) -> dict[str, list[Any]]:
    columns = read_columns(path, text, nullable=True, holds=holds)
    if _name_of(start, columns, text, kind) != path.name:
        raise InputError(f"{path} does not hold the figures that it is named for: it was changed or is damaged; remove it")
    return columns


def _is_sound(path: Path) -> bool:
    """Whether a file is there and holds what its name says; of texts, which are named by their rows, whether it can be read."""
    try:
        return bool(next((read for start, read in READ_BY_NAME.items() if path.name.startswith(start)), _columns_of_name)(path))
    except InputError:
        return False


READ_BY_NAME: Mapping[str, Callable[[Path], Any]] = {ROWS: _texts, MODULES: _modules, FIGURES: _figures}


def _file_of(name: str, *runs: Path | None) -> Path | None:
    """The file of this name, next to a run, alone or in a pack, or in the store; of several the first that is sound."""
    folders = [run.parent / FOLDER for run in runs if run]
    places = [place / name for folder in folders for place in (folder, *sorted(folder.glob("*.zip")))]
    paths = [path for path in (*places, STORE / name) if is_kept(path)]
    return next(filter(_is_sound, paths), paths[0]) if len(paths) > 1 else next(iter(paths), None)


def files_of(record: Record) -> list[str]:
    """The names of the files that hold a record's examples, texts, figures of modules and figures of instruments."""
    rows, step = record.examples, record.training.first_step if record.training else None
    names = [rows.file, _texts_name(rows.rows_hash)] if rows else []
    return [
        *names,
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
    there and is sound stays; a broken file is no source.

    Raises:
        OSError: where the disk has no room.
    """
    keep_contents(contents(records, *sources), run.parent / FOLDER)


def pack_beside(records: Iterable[Record], run: Path, *sources: Path) -> None:
    """Write the same into one file in that folder, which takes the place of an older one; equal files make an equal pack."""
    with replacing(run.parent / FOLDER / f"{run.stem}.zip") as part, ZipFile(part, "w") as pack:
        for name, content in contents(records, *sources):
            file = ZipInfo(name)  # of no date
            file.external_attr = 0o644 << 16  # else nobody may read what unzip makes of it
            pack.writestr(file, content, ZIP_DEFLATED, 9)
