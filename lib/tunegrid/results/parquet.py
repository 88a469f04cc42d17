"""Reads the small Parquet files beside a run, which anybody may have written: text and points of rows, and no more of them than
was promised. A path may lead into a pack, a zip file of them: `quick-cpu.zip/HASH.parquet`. Needs no torch.
"""

from collections.abc import Collection
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

from tunegrid.errors import InputError, first_line

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
