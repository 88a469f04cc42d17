"""Reads a task's rows from a local folder or from the hub, as one `Table` per split.

A folder may hold JSON lines, CSV, Parquet or what `datasets.save_to_disk` writes; columns are named as on the hub. Where a
row has the name of a label, it is read as its number.
"""

import json
import os
import re
import socket
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, overload
from urllib.parse import urlsplit

from tunegrid.errors import InputError, first_line
from tunegrid.grid.tasks import FILE_KINDS, Task

SECONDS = 5.0


@cache
def prefer_cache_if_unreachable() -> bool:
    """Whether the hub can be reached. If not, set HF_HUB_OFFLINE for this process: cached files load, others fail at once.

    Call it before huggingface_hub is imported, which reads the variable once. Behind a proxy, it is not checked.
    """
    if os.environ.get("HF_HUB_OFFLINE") or any(name.lower() == "https_proxy" for name in os.environ):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname or "", host.port or 443), SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return False
    return True


@cache
def commit_of(dataset: str, config: str | None) -> str | None:
    """The commit at which the hub's data set would be read now, from its cache if the hub cannot be reached; None: nowhere."""
    prefer_cache_if_unreachable()
    import datasets

    try:
        commit: str | None = datasets.load_dataset_builder(dataset, config, trust_remote_code=False).hash
    except Exception:  # whatever their HTTP client raises: reading the rows will say it
        return None
    return commit


@cache
def checkpoint_commit_of(checkpoint: str) -> str | None:
    """The commit at which the hub's checkpoint would be loaded now if nothing pins it, as for a data set; None: nowhere."""
    prefer_cache_if_unreachable()
    import huggingface_hub

    try:
        config = huggingface_hub.hf_hub_download(checkpoint, "config.json")
    except Exception:  # whatever their HTTP client raises: loading the model will say it
        return None
    return Path(config).parent.name  # .../snapshots/COMMIT/config.json


Row = dict[str, Any]
BLOCK = 1000  # rows that are read from a disk at once
LONGEST_CAUSE = 200  # characters: some libraries quote a whole schema
NAMED_FOLDERS = 6  # at most so many are listed in a sentence
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


class ReadTable(ABC):
    """A table whose rows are read when they are asked for."""

    @abstractmethod
    def __len__(self) -> int:
        """How many rows."""

    @abstractmethod
    def _read(self, indices: Sequence[int]) -> list[Row]: ...

    def column(self, name: str) -> Sequence[Any]:
        """One column's values."""
        return [row.get(name) for row in self.take(range(len(self)))]

    def take(self, indices: Sequence[int]) -> Sequence[Row]:
        """The rows at these indices."""
        return StoredRows(self._read, indices)


class LinesTable(ReadTable):
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

    def _read(self, indices: Sequence[int]) -> list[Row]:
        with self._path.open("rb") as file:
            return [json.loads(_line_at(file, self._starts[index])) for index in indices]


def _line_at(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.readline()


class DatasetTable(ReadTable):
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

    def _read(self, indices: Sequence[int]) -> list[Row]:
        with reading(self.origin):
            columns = self._dataset.select(list(indices))[:]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class NamedLabels(ReadTable):
    """A table whose target holds the labels' names, which are read as their numbers; any other value stays as it is."""

    def __init__(self, table: Table, task: Task) -> None:
        """A table of a classification's rows."""
        self._table, self._target, self._numbers = table, task.target, numbers_of(task.labels)
        self.origin, self.names, self.revision = table.origin, table.names, table.revision

    def __len__(self) -> int:
        """How many rows."""
        return len(self._table)

    def column(self, name: str) -> Sequence[Any]:
        """One column's values."""
        values = self._table.column(name)
        return [self._number(value) for value in values] if name == self._target else values

    def _read(self, indices: Sequence[int]) -> list[Row]:
        rows = self._table.take(indices)
        return [{**row, self._target: self._number(row.get(self._target))} for row in rows]

    def _number(self, value: Any) -> Any:
        return self._numbers.get(value, value) if isinstance(value, str) else value


def numbers_of(labels: Sequence[str]) -> dict[str, int]:
    """A label's number by its name, and by the number as text, as CSV has it, unless such a text is a name."""
    names = {name: number for number, name in enumerate(labels)}
    return names if any(name.isdecimal() for name in labels) else names | {str(number): number for number in range(len(labels))}


def tables(task: Task, root: Path | None) -> Mapping[str, Table]:
    """Every split by name; raises InputError where a folder, file or column is missing, or the hub cannot be reached."""
    by_name = _of_task(task, root)
    for split, table in by_name.items():
        missing = [name for name in task.hub_columns if name not in table.names]
        if len(table) and missing:
            raise InputError(
                f"{table.origin}: column {missing[0]!r} is missing; {task.folder} needs {', '.join(task.hub_columns)} "
                f"and split {split!r} has {', '.join(table.names)}: name in the file or the task's columns what the other has"
            )
    named = {
        split
        for split, table in by_name.items()
        if task.labels and len(table) and isinstance(table.take([0])[0].get(task.target), str)
    }
    return {split: NamedLabels(table, task) if split in named else table for split, table in by_name.items()}


def check_places(task: Task, root: Path | None, splits: Sequence[str]) -> None:
    """Raises InputError where a file or folder of these splits is not there; no row is read, and no hub is asked."""
    if _names_files(task, root):
        for split in splits:
            _file_of(task, root, split)
    elif root and not (folder_of(task, root) / "dataset_dict.json").is_file():
        by_name = files_of(folder_of(task, root))
        for split in splits:
            check_split(by_name, split, task)


def check_split(by_name: Collection[str], split: str, task: Task) -> None:
    """Raises InputError where a data set lacks a split."""
    if split not in by_name:
        known = ", ".join(sorted(by_name))
        raise InputError(f"{task.folder} has no split {split!r}, only {known}; give one file or folder per split")


def _names_files(task: Task, root: Path | None) -> bool:
    return task.has_own_rows or bool(task.files and root)


def _of_task(task: Task, root: Path | None) -> Mapping[str, Any]:
    if _names_files(task, root):
        return {split: _from_file(task, _file_of(task, root, split)) for split in task.files}
    return _from_hub(task) if root is None else _from_folder(task, root)


def _file_of(task: Task, root: Path | None, split: str) -> Path:
    """The file that a task names for a split; raises InputError where it is not there."""
    check_split(task.files, split, task)
    path = (root or Path()) / task.folder / task.files[split]
    if not path.is_file():
        raise InputError(f"task {task.id!r}: {path}, which its files name, is not there")
    return path


def _from_file(task: Task, path: Path) -> Any:
    with reading(str(path)):
        return READERS[path.suffix](task, [path])


def _from_folder(task: Task, root: Path) -> dict[str, Any]:
    folder = folder_of(task, root)
    if (folder / "dataset_dict.json").is_file():
        with reading(str(folder)):
            return _saved(folder)
    by_name: dict[str, Any] = {}
    for split, paths in files_of(folder).items():
        with reading(str(paths[0])):
            by_name[split] = READERS[paths[0].suffix](task, paths)
    return by_name


def folder_of(task: Task, root: Path) -> Path:
    """The folder of a task's rows below a root; raises InputError where it is not there."""
    folder = root / task.folder
    if not folder.is_dir():
        has = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else None
        more = " ..." if has and len(has) > NAMED_FOLDERS else ""
        inside = (
            f"it holds {', '.join(has[:NAMED_FOLDERS]) or 'no folders'}{more}" if has is not None else "which does not exist"
        )
        raise InputError(f"no folder {task.folder!r} below --data-root {root} ({inside}); rows of {task.dataset} go there")
    return folder


def files_of(folder: Path) -> dict[str, list[Path]]:
    """The files of each split of a folder, by its name: one, or the shards that the hub makes.

    Raises InputError where it has none.
    """
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        files = by_name.setdefault(SHARD.sub("", path.stem), []) if path.suffix in FILE_KINDS else []
        if path.suffix in FILE_KINDS and (not files or files[0].suffix == path.suffix == ".parquet"):
            files.append(path)
    if not by_name:
        kinds = ", ".join(FILE_KINDS)
        raise InputError(f"{folder} has no {kinds} or dataset_dict.json; give one file per split, as in train.jsonl")
    return by_name


def _saved(folder: Path) -> dict[str, Any]:
    import datasets

    splits = datasets.load_from_disk(str(folder))
    for split in splits.values():
        split.data.validate(full=True)  # an Arrow file's wrong offset would read past its end, which no exception tells
    return {name: DatasetTable(split, str(folder / name)) for name, split in splits.items()}


def _json_lines(task: Task, paths: Sequence[Path]) -> ListTable | LinesTable:
    """The rows of a small file, or the offsets of those of a large one, every one of which is read once."""
    path = paths[0]
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


def _parquet(task: Task, paths: Sequence[Path]) -> DatasetTable:
    import datasets

    read = [datasets.Dataset.from_parquet(str(shard)) for shard in paths]
    return DatasetTable(datasets.concatenate_datasets(read), str(paths[0]))


def _csv(task: Task, paths: Sequence[Path]) -> DatasetTable:
    """A file with the columns' names in its first line; texts stay texts, also where they are digits or nothing."""
    import datasets
    import pyarrow as pa
    from pyarrow import csv

    kinds: dict[type, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    if unfit := [name for name, kind in task.hub_columns.items() if kind not in kinds]:
        raise InputError(f"{paths[0]}: column {unfit[0]!r} of {task.folder} is no text and no number, so write it as .jsonl")
    types = {name: kinds[kind] for name, kind in task.columns.items()} | ({task.target: pa.string()} if task.labels else {})
    read = csv.read_csv(
        paths[0],
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types),
    )
    return DatasetTable(datasets.Dataset(read), str(paths[0]))


READERS: dict[str, Callable[[Task, Sequence[Path]], Any]] = {".jsonl": _json_lines, ".parquet": _parquet, ".csv": _csv}
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
