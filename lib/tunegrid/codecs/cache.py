"""Rows are tokenised once. In: a codec and rows. Out: its features.

A profile with a folder keeps them on disk, for other runs and processes. Any other keeps them in memory, for the next cells of
its process. A file's name is a hash of all that decides its content: the rows, the tokenizer, the task's columns, the
recipe's lengths and texts, the tokens around a text, the code that encodes, and the releases of the libraries that tokenise.
A file appears whole or not at all; a second process waits for the first.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from tunegrid.codecs.base import Codec, Feature
from tunegrid.codecs.store import StoredFeatures, write_features
from tunegrid.data import columns
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.machine import versions

RECIPE_FIELDS = ("max_length", "doc_stride", "max_target_length", "text", "prefix")
TASK_FIELDS = ("text", "text_pair", "target", "labels")
TOKEN_NAMES = ("before", "between", "after", "lead", "end_id", "template")  # of a codec, where it has them
BLOCK = 1000  # rows that are encoded at once
LIBRARIES = ("transformers", "tokenizers")  # a run after an upgrade must not read what the old release made
SHARED = 18  # lists in memory: rows to train on and to test, of three tasks in three tokenizers
LARGEST = 10_000  # features of a list that is kept in memory: a user's own rows may be many
CODE = [*sorted(Path(__file__).parent.glob("*.py")), Path(columns.__file__)]

_shared: dict[tuple[type[Codec], str], Sequence[Feature]] = {}


def features_of(codec: Codec, rows: Sequence[Row], *, training: bool) -> Sequence[Feature]:
    """`codec.encode(rows)`, kept on disk if the profile has a folder for it; raises InputError where that has no room."""
    folder, key = codec.cell.profile.feature_cache, cache_key(codec, rows, training=training)
    if folder is None:
        return _from_memory(key, codec, rows, training=training)
    path = folder / f"{key}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _whole(path):
                _write(path, codec, rows, training=training)
            return StoredFeatures(path, codec)
    except OSError as error:
        raise InputError(
            f"cannot keep tokenised rows in {folder} ({error.strerror or error}); make room there: what it holds can be deleted"
        ) from None


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
        [versions().get(name) for name in LIBRARIES],
    ]
    digest = hashlib.sha256(json.dumps(decisive, default=repr).encode())
    digest.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    for path in CODE:
        digest.update(path.read_bytes())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _write(path: Path, codec: Codec, rows: Sequence[Row], *, training: bool) -> None:
    part = path.with_suffix(".part")
    try:
        write_features(part, lambda: encoded(codec, rows, training=training), codec)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def encoded(codec: Codec, rows: Sequence[Row], *, training: bool) -> Iterator[Feature]:
    """The features of all rows, a block of rows at a time."""
    for start in range(0, len(rows), BLOCK):
        for feature in codec.encode(rows[start : start + BLOCK], training=training):
            yield replace(feature, example=start + feature.example)


def _whole(path: Path) -> bool:
    """Whether there is a file, and a whole one: a disk that failed may leave another."""
    try:
        with pa.memory_map(str(path)) as file:
            pa.ipc.open_file(file)
    except (FileNotFoundError, pa.ArrowInvalid):
        return False
    return True
