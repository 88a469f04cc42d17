"""Rows are tokenised once: `features_of` gives a codec's features of rows, from memory or from disk where they are kept.

A profile with a folder keeps them there, for other runs and processes: `datasets` maps the rows, writes an Arrow file and maps
that into memory. Any other profile keeps them in memory, for the next cells of its process. A file's name is a hash of all that
decides its content: the rows, the tokenizer, the task's columns, the recipe's lengths and texts, the tokens around a text, the
code that encodes, and the code of the libraries that tokenise. A second process waits for the first.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, overload

from filelock import FileLock

from tunegrid.codecs.base import Codec, Feature
from tunegrid.data import rows as data_rows
from tunegrid.data.sources import Row
from tunegrid.libraries import digest_of

RECIPE_FIELDS = ("max_length", "doc_stride", "max_target_length", "text", "prefix")
TASK_FIELDS = ("text", "text_pair", "target", "labels")
TOKEN_NAMES = ("before", "between", "after", "lead", "end_id", "template")  # of a codec, where it has them
BLOCK = 1000  # rows that are encoded at once
LIBRARIES = ("transformers", "tokenizers")  # a run with another release or commit must not read what the old one made
SHARED = 18  # lists in memory: rows to train on and to test, of three tasks in three tokenizers
LARGEST = 10_000  # features of a list that is kept in memory: a user's own rows may be many
CODE = [*sorted(Path(__file__).parent.glob("*.py")), Path(data_rows.__file__)]
COLUMNS = ("input_ids", "target", "extra")  # whole numbers, as `Codec.packed` makes them

_shared: dict[tuple[type[Codec], str], Sequence[Feature]] = {}


class StoredFeatures(Sequence[Feature]):
    """The features of a file, equal to those that were written.

    Attributes:
        lengths: tokens of each feature.
    """

    def __init__(self, table: Any, codec: Codec) -> None:
        """Features of a `datasets.Dataset`, which may be mapped into memory."""
        import pyarrow.compute

        self._table = table.with_format("numpy")
        self._codec = codec
        self.lengths: list[int] = pyarrow.compute.list_value_length(table.data["input_ids"]).to_pylist() if len(table) else []

    def __len__(self) -> int:
        """How many features."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Feature: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feature]: ...
    def __getitem__(self, index: int | slice) -> Feature | list[Feature]:
        """A feature, made anew; of a slice, a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row = self._table[range(len(self))[index]]
        ids, target, extra = (row[name].tolist() for name in COLUMNS)
        return Feature(example=int(row["example"]), input_ids=ids, **self._codec.restored(target, extra))


def lengths_of(features: Sequence[Feature]) -> Sequence[int]:
    """Tokens of each feature; stored ones are not made for it."""
    return features.lengths if isinstance(features, StoredFeatures) else [len(feature.input_ids) for feature in features]


def features_of(codec: Codec, rows: Sequence[Row], *, training: bool) -> Sequence[Feature]:
    """`codec.encode(rows)`, kept on disk if the profile has a folder for it that can be written, else in memory."""
    folder, key = codec.cell.profile.feature_cache, cache_key(codec, rows, training=training)
    if folder is None:
        return _from_memory(key, codec, rows, training=training)
    path = folder / f"{key}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            return StoredFeatures(_from_disk(path, codec, rows, training=training), codec)
    except Exception as error:  # `datasets` closes its file first, which raises another one
        if _os_error(error) is None:
            raise
        return _from_memory(key, codec, rows, training=training)


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the system that lies behind another one, if any."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _from_memory(key: str, codec: Codec, rows: Sequence[Row], *, training: bool) -> Sequence[Feature]:
    name = (type(codec), key)  # the class itself: two that are made by one function share a name
    if name in _shared:
        return _shared[name]
    features = codec.encode(rows, training=training)
    if len(features) <= LARGEST:
        if len(_shared) == SHARED:
            del _shared[next(iter(_shared))]
        _shared[name] = features
    return features


def cache_key(codec: Codec, rows: Sequence[Row], *, training: bool) -> str:
    """Sixteen hex digits; two codecs that would encode the rows alike have the same."""
    decisive = [
        f"{type(codec).__module__}.{type(codec).__qualname__}",
        training,
        [getattr(codec.recipe, name) for name in RECIPE_FIELDS],
        [getattr(codec.task, name) for name in TASK_FIELDS],
        [getattr(codec, name, None) for name in TOKEN_NAMES],
        [digest_of(name) for name in LIBRARIES],
    ]
    digest = hashlib.sha256(json.dumps(decisive, default=repr).encode())
    digest.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    for path in CODE:
        digest.update(path.read_bytes())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _from_disk(path: Path, codec: Codec, rows: Sequence[Row], *, training: bool) -> Any:
    """The file's table; it is written where there is none, or no whole one: a disk that failed may leave another."""
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.from_file(str(path))
    except (OSError, pyarrow.ArrowInvalid):
        path.unlink(missing_ok=True)
    return _mapped(path, codec, rows, training=training)


def _mapped(path: Path, codec: Codec, rows: Sequence[Row], *, training: bool) -> Any:
    """The rows' features as `datasets` writes them, a block of rows at a time."""
    import datasets

    numbers = datasets.List(datasets.Value("uint32"))
    schema = datasets.Features({"example": datasets.Value("uint32"), **dict.fromkeys(COLUMNS, numbers)})
    indices = datasets.Dataset.from_dict({"row": range(len(rows))})
    with TemporaryDirectory(dir=path.parent) as folder:  # a file appears whole or not at all
        part = Path(folder) / path.name
        table = indices.map(
            lambda block: _columns(codec, rows, block["row"], training=training),
            batched=True,
            batch_size=BLOCK,
            writer_batch_size=BLOCK,
            remove_columns=["row"],
            features=schema,
            cache_file_name=str(part),
            new_fingerprint=path.stem,
        )
        if not part.exists():  # of no rows there is none
            return table
        part.replace(path)
    return datasets.Dataset.from_file(str(path))


def _columns(codec: Codec, rows: Sequence[Row], indices: Sequence[int], *, training: bool) -> dict[str, list[Any]]:
    """The features of some rows that follow one another, by column."""
    table: dict[str, list[Any]] = defaultdict(list)
    start = indices[0]
    for feature in codec.encode(rows[start : start + len(indices)], training=training):
        values = (start + feature.example, feature.input_ids, *codec.packed(feature))
        for name, value in zip(("example", *COLUMNS), values, strict=True):
            table[name].append(value)
    return {name: table[name] for name in ("example", *COLUMNS)}


T = TypeVar("T")
BUCKET = 20  # batches sorted by length together: wide enough to save padding, narrow enough to keep the order random


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch in batches of like length: shuffle, sort within buckets, shuffle the batches.

    The order depends on the seed and the epoch only: all methods of a triple see the same.

    Args:
        lengths: of the features.
        size: of a batch.
        seed: of the run.
        epoch: from 0 on.

    Returns:
        The indices of each batch's features.
    """
    rng = Random(f"{seed}-{epoch}")
    shuffled = rng.sample(range(len(lengths)), len(lengths))
    batches = [
        list(batch)
        for start in range(0, len(shuffled), size * BUCKET)
        for batch in chunks(sorted(shuffled[start : start + size * BUCKET], key=lengths.__getitem__), size)
    ]
    rng.shuffle(batches)
    return batches


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Pieces of `size` items; the last one may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
