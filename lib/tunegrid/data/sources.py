"""Reads a task's rows from a local folder or the hub, as one `Table` per split.

A folder may hold JSON, CSV, Parquet or a saved `datasets.Dataset`, with columns named as on the
hub. Label names are read as numbers. Large files are kept on disk, in Arrow's format, and mapped
into memory. pyarrow and `datasets` read everything except small files of JSON. Other functions here
return a row's texts and answers.
"""

import csv
import gzip
import json
import os
import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunegrid.errors import InputError, first_line
from tunegrid.grid.tasks import FILE_KINDS, GZIP, Task, file_kind
from tunegrid.machine import temporary_folder


@cache
def prefer_cache_if_unreachable() -> bool:
    """If the hub cannot be reached, sets HF_HUB_OFFLINE for this process and returns False.

    Cached files then load, and other files fail immediately. If HF_HUB_OFFLINE or a proxy is
    already set, returns True without a check. Call this before importing huggingface_hub, which
    reads the variable only once.
    """
    if os.environ.get("HF_HUB_OFFLINE") or any(
        name.lower() == "https_proxy" for name in os.environ
    ):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return False
    return True


@cache
def dataset_commit(dataset: str, config: str | None) -> str | None:
    """The latest commit of a data set on the hub, or the cached copy's if the hub is unreachable.

    Returns None if neither is found.
    """
    prefer_cache_if_unreachable()
    import datasets

    try:
        commit: str | None = datasets.load_dataset_builder(
            dataset, config, trust_remote_code=False
        ).hash
    except Exception:  # whatever the HTTP client raises; reading the rows reports it
        return None
    return commit


@cache
def checkpoint_commit(checkpoint: str) -> str | None:
    """The latest commit of a checkpoint on the hub, or the cached copy's; None if there is none."""
    prefer_cache_if_unreachable()
    import huggingface_hub

    try:
        config = huggingface_hub.hf_hub_download(checkpoint, "config.json")
    except Exception:  # whatever the HTTP client raises; loading the model reports it
        return None
    return Path(config).parent.name  # .../snapshots/COMMIT/config.json


Row = dict[str, Any]
JSON_TYPES = (str, int, float, list, dict, type(None))
ROWS_AT_ONCE = 1000  # rows to read from disk at a time
DENSE = 4  # read a slice if it has fewer than this many rows per row needed
FIRST = 1000  # rows of a large file to check before anything is loaded
LONGEST_CAUSE = 200  # characters; some libraries quote a whole schema
HELD_BYTES = 2**25  # the largest file to hold in memory; a larger file stays on disk
BLOCK_BYTES = 2**24  # of JSON lines to read at a time
# Column separators by kind of file; the first is used if a header has no separator.
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t"}
# Advice on errors, by a part of pyarrow's message.
CSV_ADVICE = {
    "Empty CSV": "it is empty: write a line of column names, and rows",
    "invalid UTF8": "save it as UTF-8",
    "CSV parse error: Expected": (
        "header and rows have different numbers of columns: use one separator throughout, "
        "and quote texts that contain it"
    ),
}
ROOTS_HINT = "without the hub, name local folders with --data-root=DIR and --checkpoint-root=DIR"
COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")
SHARD_NUMBER = re.compile(r"-\d+-of-\d+$")  # the hub's shards: train-00000-of-00004.parquet


@contextmanager
def input_errors(origin: str) -> Iterator[None]:
    """Turns any error in reading the file `origin` into an InputError with a short message."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error  # `datasets` itself says only that it failed
        text = f"{type(cause).__name__}: {first_line(cause)[:LONGEST_CAUSE]}"
        advice = "save the data set there again"
        if file_kind(origin) in SEPARATORS:
            advice = "correct it"
            for fault, way_out in CSV_ADVICE.items():
                if fault in text:
                    advice = way_out
        raise InputError(f"{origin} cannot be read ({text}); {advice}") from None


class Table:
    """One split, read by column or by row.

    Its rows are a list in memory, or a `datasets.Dataset` on disk.

    Attributes:
        origin: where the rows came from.
        revision: the hub's commit; None if unknown or local.
        is_whole: whether the table has all rows of its file.
        first: the number of the first row, for messages.
        names: the names of the columns as stored.
        convert: a function that makes a row from a stored row and, for messages, its location; None
            leaves rows as stored.
    """

    def __init__(
        self, rows: Any, origin: str, revision: str | None = None, *, is_whole: bool = True
    ) -> None:
        """Takes the rows and where they came from."""
        self._rows = rows
        self.origin = origin
        self.revision = revision
        self.is_whole = is_whole
        self.first = 2 if file_kind(origin) in SEPARATORS else 1  # row 1 of a CSV holds the names
        self._by_row = isinstance(rows, list)
        self.names = (
            tuple(rows[0] if len(rows) else ()) if self._by_row else tuple(rows.column_names)
        )
        self.convert: Callable[[Row, str], Row] | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def column(self, name: str) -> Sequence[Any]:
        """The values of a column."""
        if self.convert or self._by_row:
            return [row.get(name) for row in self.take(range(len(self)))]
        with input_errors(self.origin):
            return list(self._rows[name][:])  # in one go; `datasets` iterates row by row

    def take(self, indices: Sequence[int]) -> Sequence[Row]:
        """The rows at these indices, read lazily if they are on disk."""
        return self.read(indices) if isinstance(self._rows, list) else StoredRows(self, indices)

    def read(self, indices: Sequence[int]) -> list[Row]:
        """The rows at these indices, in memory."""
        with input_errors(self.origin):
            rows = _select(self._rows, indices)
        if self.convert:
            for i, index in enumerate(indices):
                rows[i] = self.convert(rows[i], f"{self.origin}, row {index + self.first}")
        return rows


def _select(dataset: Any, indices: Sequence[int]) -> list[Row]:
    """Reads the rows at these indices; if they are close together, as one slice for speed."""
    if isinstance(dataset, list) or not indices:
        return [dataset[index] for index in indices]
    first = min(indices)
    last = max(indices)
    offsets: Sequence[int] = range(len(indices))
    if last - first < DENSE * len(indices):
        columns = dataset[first : last + 1]
        offsets = [index - first for index in indices]
    else:
        columns = dataset.select(list(indices))[:]
    columns = {name: columns[name] for name in columns}  # decodes each column once
    rows = []
    for offset in offsets:
        rows.append(_json_row({name: values[offset] for name, values in columns.items()}))
    return rows


class StoredRows(Sequence[Row]):
    """Rows of a table that are read lazily, a block at a time."""

    def __init__(self, table: Table, indices: Sequence[int]) -> None:
        """Takes a table and the indices of the rows to expose, in order."""
        self._table = table
        self._indices = indices
        self._block: list[Row] = []  # the last block read; rows are mostly read in order
        self._number = -1

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Row]:
        """Reads the rows in order, without keeping them."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self._table.read(self._indices[start : start + ROWS_AT_ONCE])

    def __getitem__(self, index: Any) -> Any:
        """Reads a row, or a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number, i = divmod(range(len(self))[index], ROWS_AT_ONCE)
        if number != self._number:
            self._block = self._table.read(
                self._indices[number * ROWS_AT_ONCE : (number + 1) * ROWS_AT_ONCE]
            )
            self._number = number
        return self._block[i]


def tables(task: Task, root: Path | None, *, first: bool = False) -> Mapping[str, Table]:
    """The `Table` of each split, by name.

    With `first`, only the first rows of large files are read, and the hub is not contacted. Raises
    InputError if a folder, file or column is missing, or the hub cannot be reached.
    """
    messages = task.messages
    by_name: dict[str, Table] = {}
    if root or task.files:
        for split, paths in split_files(task, root).items():
            by_name[split] = _read(task, paths, first=first)
    elif not first:
        by_name = hub_tables(task)
    for split, table in by_name.items():
        missing_columns = [name for name in task.hub_columns if name not in table.names]
        if len(table) and missing_columns:
            needs = f"{task.folder} needs {', '.join(task.hub_columns)}"
            names = f"split {split!r} has {', '.join(table.names)}"
            raise InputError(
                f"{table.origin}: column {missing_columns[0]!r} is missing; {needs} and {names}: "
                "rename the file's columns or the task's, so that they agree"
            )
        if task.labels and len(table) and isinstance(table.read([0])[0].get(task.target), str):
            table.convert = labeller(task)
        elif messages:
            table.convert = lambda row, place: last_exchange(row[messages], place)
    return by_name


def labeller(task: Task) -> Callable[[Row, str], Row]:
    """Returns a function that replaces the name of a row's label with its number.

    The function also accepts numbers stored as text, as in CSV, unless some label's name is itself
    a number.
    """
    numbers: dict[Any, int] = {name: number for number, name in enumerate(task.labels)}
    if not any(name.isdecimal() for name in task.labels):
        numbers |= {str(number): number for number in range(len(task.labels))}

    def convert(row: Row, place: str) -> Row:
        value = row.get(task.target)
        if isinstance(value, str):
            value = numbers.get(value, value)
        return row | {task.target: value}

    return convert


def last_exchange(turns: Any, place: str) -> Row:
    """Turns a conversation into a row.

    `reply` is the assistant's last turn, `prompt` the user's turn before it, and `history`
    everything earlier; later turns are left out. Raises InputError if a turn is malformed, if user
    and assistant do not alternate, or if there is no reply.
    """
    try:
        roles = [turn["role"] for turn in turns]
        contents = [turn["content"] for turn in turns]
    except (TypeError, KeyError):
        raise InputError(
            f"{place}: a conversation is a list of turns, each with a role and a content"
        ) from None
    first = int(roles[:1] == ["system"])
    count = len(roles) - first
    last = first + count // 2 * 2 - 1  # the assistant's last turn
    if last < first or roles[first:] != (["user", "assistant"] * count)[:count]:
        order = ", ".join(map(str, roles[:6]))
        expected = "user and assistant must alternate, after at most one system turn"
        raise InputError(f"{place}: {expected}; found {order}")
    history = [{"role": roles[i], "content": contents[i]} for i in range(last - 1)]
    return {"history": history, "prompt": contents[last - 1], "reply": contents[last]}


def check_split(by_name: Collection[str], split: str, task: Task) -> None:
    """Raises InputError if a data set lacks a split."""
    if split not in by_name:
        names = ", ".join(sorted(by_name))
        raise InputError(
            f"{task.folder} has no split {split!r}, only {names}; give one file or folder per split"
        )


def split_files(task: Task, root: Path | None) -> dict[str, list[Path]]:
    """The files of each split: the task's own files, or those in its folder.

    A split is one file, Parquet shards named as on the hub, or a folder from `save_to_disk`. Raises
    InputError if the folder or a named file is missing, or the folder has no split.
    """
    folder = (root or Path()) / task.folder
    by_name: dict[str, list[Path]] = {}
    if task.files:
        for split, path in task.files.items():
            if not root and not Path(path).is_absolute():
                fault = "is not beside the --grid file"
                hint = "correct its name, or give the folder that it is in with --data-root=DIR"
                raise InputError(f"task {task.id!r}: {path}, which its files name, {fault}; {hint}")
            if not (folder / path).is_file():
                raise InputError(
                    f"task {task.id!r}: {folder / path}, which its files name, is not there"
                )
            by_name[split] = [folder / path]
        return by_name
    if not folder.is_dir():
        reason = "which does not exist"
        if folder.parent.is_dir():
            folders = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
            reason = f"it holds {', '.join(folders[:6]) or 'no folders'}"
        hint = f"rows of {task.dataset} go there"
        raise InputError(f"no folder {task.folder!r} below --data-root {root} ({reason}); {hint}")
    for path in sorted(folder.iterdir()):
        split = SHARD_NUMBER.sub("", Path(path.name.removesuffix(GZIP)).stem)
        if file_kind(path) == ".json" and split not in (*task.splits, task.own_test):
            continue  # libraries keep metadata there
        if file_kind(path) or (path / "state.json").is_file():
            files = by_name.setdefault(split, [])
            if not files or files[0].suffix == path.suffix == ".parquet":
                files.append(path)
    if not by_name:
        hint = "give one file per split, as in train.jsonl"
        raise InputError(f"{folder} has no {', '.join(FILE_KINDS)} or saved split; {hint}")
    return by_name


def _read(task: Task, paths: Sequence[Path], *, first: bool = False) -> Table:
    """Reads the files of a split.

    With `first`, does not import `datasets`, and reads only the first rows of a large file and no
    rows of a saved `Dataset`.
    """
    path = paths[0]
    origin = str(path)
    kind = file_kind(path)
    with input_errors(origin):
        is_large = sum(shard.stat().st_size for shard in paths) > HELD_BYTES
        if kind in (".json", ".jsonl"):
            if is_large and not first and not _is_array(path):
                return Table(_stored(_json_batches(task, path)), origin)
            return _first_rows(_json_rows(path), origin, is_large=is_large and first)
        if kind in SEPARATORS and not is_large:
            return Table(list(_batch_rows([_csv(task, path)])), origin)
        if kind in SEPARATORS and first:
            return _first_rows(_batch_rows(_csv(task, path, batches=True)), origin, is_large=True)
        if first:
            from pyarrow.parquet import ParquetFile

            files = paths if kind else ()
            batches = chain.from_iterable(ParquetFile(file).iter_batches(FIRST) for file in files)
            return _first_rows(_batch_rows(batches), origin, is_large=is_large or not kind)
        import datasets

        if kind == ".parquet":
            return Table(datasets.Dataset.from_parquet([str(shard) for shard in paths]), origin)
        if kind:
            return Table(_stored(_csv(task, path, batches=True)), origin)
        dataset = datasets.load_from_disk(origin)
        # Otherwise a wrong offset in an Arrow file would silently read past its end.
        dataset.data.validate(full=True)
        return Table(dataset, origin)


def _first_rows(rows: Iterator[Row], origin: str, *, is_large: bool) -> Table:
    """A table in memory with all rows, or with only the first rows of a large file."""
    return Table(list(islice(rows, FIRST if is_large else None)), origin, is_whole=not is_large)


def _batch_rows(batches: Iterable[Any]) -> Iterator[Row]:
    """Yields the rows of pyarrow's batches or tables."""
    for batch in batches:
        yield from map(_json_row, batch.to_pylist())


def _json_row(row: Row) -> Row:
    """Turns values that JSON lacks, such as dates, into text, so that rows can be hashed."""
    for name, value in row.items():
        if not isinstance(value, JSON_TYPES):
            row[name] = str(value)
    return row


def _open(path: Path) -> Any:
    """Opens a file to read its bytes, decompressed if necessary."""
    return gzip.open(path) if path.name.lower().endswith(GZIP) else path.open("rb")


def _stored(batches: Iterable[Any]) -> Any:
    """A `datasets.Dataset` of Arrow's batches, which are on disk and mapped into memory.

    Their file has no name, so it is gone when this process ends, however it ends.
    """
    import datasets
    import pyarrow as pa

    with temporary_folder() as folder:
        path = folder / "rows.arrow"
        batches = iter(batches)
        first = next(batches)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for batch in chain([first], batches):
                writer.write(batch)
        return datasets.Dataset.from_file(str(path))


def _json_batches(task: Task, path: Path) -> Iterator[Any]:
    """Yields the rows of a file of JSON lines as Arrow's tables, a block of lines at a time.

    Columns and their types are those of the first rows, since Arrow would guess that some texts are
    dates. A column without a value in the first rows has the task's type, or is left out. Raises
    InputError for a line that is not a row, or whose columns have other types.
    """
    import pyarrow as pa
    from pyarrow import json as arrow_json

    first_rows = [row for _, row in islice(_json_lines(path), FIRST)]
    types = _arrow_types(task)
    fields = []
    for field in pa.Table.from_pylist(first_rows).schema:
        if not pa.types.is_null(field.type):
            fields.append(field)
        elif field.name in types:
            fields.append(field.with_type(types[field.name]))
    parse = arrow_json.ParseOptions(
        explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
    )
    count = 0
    for block in _line_blocks(path):
        read = arrow_json.ReadOptions(block_size=len(block) + 1)
        try:
            table = arrow_json.read_json(pa.BufferReader(block), read, parse)
            table.validate(full=True)  # texts are UTF-8
            if len(table) != sum(1 for line in block.splitlines() if line.strip()):
                raise pa.ArrowInvalid("a line holds several rows")
        except pa.ArrowInvalid as error:
            for _ in _json_lines(path):
                pass  # which names the line that is no row
            cause = f"among the rows from {count + 1} on, {first_line(error)}"
            advice = f"give each column the type that it has in the first {FIRST} rows"
            raise InputError(f"{path}: {cause}; {advice}") from None
        count += len(table)
        yield from table.to_batches()


def _line_blocks(path: Path) -> Iterator[bytes]:
    """Yields a file's bytes in blocks of whole lines, decompressed if necessary."""
    with _open(path) as file:
        while block := file.read(BLOCK_BYTES):
            block += file.readline()
            if block.strip():
                yield block


def _is_array(path: Path) -> bool:
    with _open(path) as file:
        return next((line for line in file if line.strip()), b"").lstrip().startswith(b"[")


def _json_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a JSON array or of JSON lines."""
    if not _is_array(path):
        for _, row in _json_lines(path):
            yield row
        return
    try:
        with _open(path) as file:
            rows = json.loads(file.read().decode(), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: invalid JSON ({error})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, row {number}: expected a JSON object with the data set's columns"
            )
        yield row


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yields the offset in bytes and the row of each line; skips blank lines."""
    start = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line.decode(), object_pairs_hook=_unique_keys)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {number}: invalid JSON ({error})") from None
                if not isinstance(row, dict):
                    raise InputError(
                        f"{path}, line {number}: expected a JSON object with the data set's columns"
                    )
                yield start, row
            start += len(line)


def _unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """Builds a dict from a JSON object's pairs; raises ValueError if a key is repeated."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {name!r} is there twice")
    return row


def _arrow_types(task: Task) -> dict[str, Any]:
    """Arrow's types of the task's columns that hold texts or numbers, by name."""
    import pyarrow as pa

    kinds: dict[type, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    return {name: kinds[kind] for name, kind in task.columns.items() if kind in kinds}


def _csv(task: Task, path: Path, *, batches: bool = False) -> Any:
    """Reads a CSV or TSV file with pyarrow, whole or in batches; the first line names the columns.

    Digits and empty values in labels and in columns declared as text stay text. Rows that are too
    short are rejected; pandas, with which `datasets` reads CSV, would pad them.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    types = _arrow_types(task)
    if task.labels:
        types[task.target] = pa.string()
    read = arrow_csv.open_csv if batches else arrow_csv.read_csv
    return read(
        path,  # pyarrow decompresses it if its name says so
        parse_options=arrow_csv.ParseOptions(
            delimiter=_separator(task, path), newlines_in_values=True
        ),
        convert_options=arrow_csv.ConvertOptions(column_types=types),
    )


def _separator(task: Task, path: Path) -> str:
    """The separator that finds the most of the task's column names in the header."""
    with _open(path) as file:
        header = file.readline().decode("utf-8-sig", "replace")
    best = (-1, -1)
    separator = ""
    for candidate in SEPARATORS[file_kind(path)]:
        names = next(csv.reader([header], delimiter=candidate), [])
        score = (len(set(names).intersection(task.columns)), len(names))
        if score > best:
            best = score
            separator = candidate
    return separator


def hub_tables(task: Task) -> dict[str, Table]:
    """Loads a data set's splits from the hub, by name; raises InputError if that fails."""
    import datasets

    try:
        splits = datasets.load_dataset(task.dataset, task.config, trust_remote_code=False)
    except Exception as error:  # whatever the HTTP client raises
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"cannot load {task.dataset} from the hub ({cause}); {ROOTS_HINT}"
        ) from None
    by_name = {}
    for name, split in splits.items():
        # The hub's commit is in the addresses of sources or cache files that `datasets` records.
        addresses = list(split.info.download_checksums or {})
        addresses += [file["filename"] for file in split.cache_files]
        commit = next(filter(None, map(COMMIT.search, addresses)), None)
        revision = commit.group() if commit else None
        by_name[name] = Table(split, f"hub:{task.dataset}/{name}", revision)
    return by_name


def stitch(row: Row, columns: Sequence[str]) -> str:
    """Joins the texts in the given columns with line breaks, skipping empty texts."""
    return "\n".join(row[column] for column in columns if row[column])


def identity(row: Row, columns: Sequence[str]) -> int:
    """A hash of a row's text in the given columns, ignoring case and the amount of white space.

    Rows with the same hash count as the same text. With eight bytes, the chance that any two of
    three million texts share a hash is 2.4e-7.
    """
    text = " ".join(str(row[column]) for column in columns)
    text = " ".join(text.lower().split())
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def context(task: Task, row: Row) -> str:
    """The passage that contains the answers of a row in an extraction task."""
    return str(row[task.text_pair[0]])


def answer_texts(task: Task, row: Row) -> list[str]:
    """All annotated answers of a row in an extraction task, in annotation order."""
    return list(row[task.target]["text"])


def answer_span(task: Task, row: Row) -> tuple[int, int]:
    """Start and exclusive end of the first annotated answer in the context, in characters.

    An answer may occur several times in the context, so the annotated start counts, not the first
    occurrence (SQuAD v1.1).
    """
    start: int = row[task.target]["answer_start"][0]
    return start, start + len(answer_texts(task, row)[0])
