"""Tokenised rows on disk. In: a codec and rows. Out: its features, from a file if another run or process has left one.

A file's name is a hash of all that decides its content: the rows, the tokenizer, the task's columns, the recipe's lengths
and texts, the tokens around a text, and the code that encodes. A file appears whole or not at all; a second process waits
for the first.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from lib.codecs.base import Codec, Feature
from lib.data import columns
from lib.data.sources import Row
from lib.errors import InputError

RECIPE_FIELDS = ("max_length", "doc_stride", "max_target_length", "text", "prefix")
TASK_FIELDS = ("text", "text_pair", "target", "labels")
TOKEN_NAMES = ("before", "between", "after", "lead", "end_id", "template")  # of a codec, where it has them
CODE = [*sorted(Path(__file__).parent.glob("*.py")), Path(columns.__file__)]


def features_of(codec: Codec, rows: Sequence[Row], *, training: bool) -> list[Feature]:
    """`codec.encode(rows)`, by way of the profile's cache where it has one; raises InputError where that has no room."""
    folder = codec.cell.profile.feature_cache
    if folder is None:
        return codec.encode(rows, training=training)
    path = folder / f"{cache_key(codec, rows, training=training)}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            features = _read(path, codec)
            if features is None:
                features = codec.encode(rows, training=training)
                _write(path, features)
            return features
    except OSError as error:
        raise InputError(
            f"cannot keep tokenised rows in {folder} ({error.strerror or error}); make room there: what it holds can be deleted"
        ) from None


def cache_key(codec: Codec, rows: Sequence[Row], *, training: bool) -> str:
    """Sixteen hex digits; two codecs that would encode the rows alike have the same."""
    decisive = [
        f"{type(codec).__module__}.{type(codec).__qualname__}",
        training,
        [getattr(codec.recipe, name) for name in RECIPE_FIELDS],
        [getattr(codec.task, name) for name in TASK_FIELDS],
        [getattr(codec, name, None) for name in TOKEN_NAMES],
    ]
    digest = hashlib.sha256(json.dumps(decisive, default=repr).encode())
    digest.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    for path in CODE:
        digest.update(path.read_bytes())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _write(path: Path, features: Sequence[Feature]) -> None:
    part = path.with_suffix(".part")
    try:
        pq.write_table(pa.Table.from_pylist([asdict(feature) for feature in features]), part, compression="zstd")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, codec: Codec) -> list[Feature] | None:
    """A file's features; None where there is no file, or not a whole one."""
    if not path.is_file():
        return None
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid:  # not written by us, or by a disk that failed: write it again
        return None
    return [Feature(example=r["example"], input_ids=r["input_ids"], **codec.restored(r["target"], r["extra"])) for r in rows]
