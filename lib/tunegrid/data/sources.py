"""Reads a task's rows from a local folder or from the hub, as one `Table` per split.

A folder may hold JSON lines, Parquet or what `datasets.save_to_disk` writes; columns are named as on the hub.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, overload

from tunegrid.errors import InputError, first_line
from tunegrid.grid.tasks import Task

Row = dict[str, Any]
BLOCK = 1000  # rows that are read from a disk at once
LONGEST_CAUSE = 200  # characters: some libraries quote a whole schema
HELD_BYTES = 2**25  # of JSON lines: a larger file stays on its disk
ROOTS_HINT = "without the hub, name local folders with --data-root=DIR and --checkpoint-root=DIR"


@contextmanager
def reading(origin: str) -> Iterator[None]:
    """Whatever a library raises meanwhile, of whichever part of a damaged file, is an InputError of one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {first_line(error)[:LONGEST_CAUSE]}"
        raise InputError(f"{origin} cannot be read ({cause}); save the data set there anew") from None


class Table(Protocol):
    """One split, read by column or by row."""

    origin: str
    names: tuple[str, ...]
    revision: str | None

    def __len__(self) -> int:
        """How many rows."""

    def column(self, name: str) -> Sequence[Any]:
        """One column's values."""

    def take(self, indices: Sequence[int]) -> Sequence[Row]:
        """The rows at these indices."""


class StoredRows(Sequence[Row]):
    """Rows that stay on disk: some are read, a block at a time, when one of them is asked for."""

    def __init__(self, read: Callable[[Sequence[int]], list[Row]], indices: Sequence[int]) -> None:
        """How rows are read, and which."""
        self._read, self._indices = read, indices
        self._block: list[Row] = []
        self._number = -1  # of the block that was read last: rows are mostly asked for in their order

    def __len__(self) -> int:
        """How many rows."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """A row; of a slice, a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number, i = divmod(range(len(self))[index], BLOCK)
        if number != self._number:
            self._block = self._read(self._indices[number * BLOCK : (number + 1) * BLOCK])
            self._number = number
        return self._block[i]


class ListTable:
    """Rows held in memory."""

    revision = None

    def __init__(self, rows: list[Row], origin: str) -> None:
        """Rows and where they came from."""
        self._rows = rows
        self.origin = origin
        self.names = tuple(rows[0]) if rows else ()

    def __len__(self) -> int:
        """How many rows."""
        return len(self._rows)

    def column(self, name: str) -> Sequence[Any]:
        """One column's values."""
        return [row.get(name) for row in self._rows]

    def take(self, indices: Sequence[int]) -> Sequence[Row]:
        """The rows at these indices."""
        return [self._rows[i] for i in indices]


class LinesTable:
    """A large file of JSON lines, of which only the offsets of its rows are held."""

    revision = None

    def __init__(self, path: Path, starts: Sequence[int]) -> None:
        """A file of sound rows, and the byte at which each begins."""
        self._path, self._starts = path, starts
        self.origin = str(path)
        self.names = tuple(self._read([0])[0])

    def __len__(self) -> int:
        """How many rows."""
        return len(self._starts)

    def column(self, name: str) -> Sequence[Any]:
        """One column's values."""
        return [row.get(name) for row in self.take(range(len(self)))]

    def take(self, indices: Sequence[int]) -> Sequence[Row]:
        """The rows at these indices."""
        return StoredRows(self._read, indices)

    def _read(self, indices: Sequence[int]) -> list[Row]:
        with self._path.open("rb") as file:
            return [json.loads(_line_at(file, self._starts[index])) for index in indices]


def _line_at(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.readline()


class DatasetTable:
    """A `datasets.Dataset`, read from its memory map."""

    def __init__(self, dataset: Any, origin: str, revision: str | None = None) -> None:
        """A data set, where it came from, and at which commit of the hub."""
        self._dataset = dataset
        self.origin = origin
        self.revision = revision
        self.names = tuple(dataset.column_names)

    def __len__(self) -> int:
        """How many rows."""
        return len(self._dataset)

    def column(self, name: str) -> Sequence[Any]:
        """One column's values."""
        with reading(self.origin):
            return list(self._dataset[name])

    def take(self, indices: Sequence[int]) -> Sequence[Row]:
        """The rows at these indices."""
        return StoredRows(self._read, indices)

    def _read(self, indices: Sequence[int]) -> list[Row]:
        with reading(self.origin):
            columns = self._dataset.select(list(indices))[:]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def tables(task: Task, root: Path | None) -> Mapping[str, Table]:
    """Every split by name; raises InputError where a folder, file or column is missing, or the hub cannot be reached."""
    by_name = _from_hub(task) if root is None else _from_folder(task, root)
    for split, table in by_name.items():
        missing = [name for name in task.hub_columns if name not in table.names]
        if len(table) and missing:
            raise InputError(
                f"{table.origin}: column {missing[0]!r} is missing; {task.folder} needs {', '.join(task.hub_columns)} "
                f"and split {split!r} has {', '.join(table.names)}"
            )
    return by_name


def _from_folder(task: Task, root: Path) -> dict[str, Any]:
    folder = root / task.folder
    if not folder.is_dir():
        has = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else None
        inside = f"it holds {', '.join(has) or 'no folders'}" if has is not None else "which does not exist"
        raise InputError(f"no folder {task.folder!r} below --data-root {root} ({inside}); rows of {task.dataset} go there")
    if (folder / "dataset_dict.json").is_file():
        with reading(str(folder)):
            return _saved(folder)
    by_name: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        split = SHARD.sub("", path.stem)
        if path.suffix in READERS and split not in by_name:
            with reading(str(path)):
                by_name[split] = READERS[path.suffix](folder, split)
    if not by_name:
        raise InputError(f"{folder} has no .jsonl, .parquet or dataset_dict.json; give one file per split, as in train.jsonl")
    return by_name


def _saved(folder: Path) -> dict[str, Any]:
    import datasets

    splits = datasets.load_from_disk(str(folder))
    for split in splits.values():
        split.data.validate(full=True)  # an Arrow file's wrong offset would read past its end, which no exception tells
    return {name: DatasetTable(split, str(folder / name)) for name, split in splits.items()}


def _json_lines(folder: Path, split: str) -> ListTable | LinesTable:
    """The rows of a small file, or the offsets of those of a large one, every one of which is read once."""
    path = folder / f"{split}.jsonl"
    rows: list[Row] = []
    starts, begin = array("q"), 0
    try:
        held = path.stat().st_size <= HELD_BYTES
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = _json_row(line.decode(), f"{path}, line {number}")
                    rows += [row] if held else []
                    starts.append(begin)
                begin += len(line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from None
    return ListTable(rows, str(path)) if held or not starts else LinesTable(path, starts)


def _json_row(line: str, source: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: invalid JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{source}: expected a JSON object with the data set's columns")
    return row


def _parquet(folder: Path, split: str) -> DatasetTable:
    import datasets

    shards = sorted(path for path in folder.glob("*.parquet") if SHARD.sub("", path.stem) == split)
    read = [datasets.Dataset.from_parquet(str(shard)) for shard in shards]
    return DatasetTable(datasets.concatenate_datasets(read), str(shards[0]))


READERS: dict[str, Callable[[Path, str], Any]] = {".jsonl": _json_lines, ".parquet": _parquet}
COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")
SHARD = re.compile(r"-\d+-of-\d+$")  # the hub's shards: train-00000-of-00004.parquet


def _from_hub(task: Task) -> dict[str, Any]:
    import datasets

    try:
        splits = datasets.load_dataset(task.dataset, task.config, trust_remote_code=False)
    except Exception as error:  # the libraries below raise whatever their HTTP client of the year does
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"cannot load {task.dataset} from the hub ({cause}); {ROOTS_HINT}") from None
    return {name: DatasetTable(split, f"hub:{task.dataset}/{name}", revision_of(split)) for name, split in splits.items()}


def revision_of(dataset: Any) -> str | None:
    """The hub's commit that a data set was read at; `datasets` has it in the addresses of the sources or of its cache."""
    addresses = [*(dataset.info.download_checksums or {}), *(file["filename"] for file in dataset.cache_files)]
    return next((commit.group() for address in addresses if (commit := COMMIT.search(address))), None)
