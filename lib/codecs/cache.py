"""Tokenised rows on disk. In: a codec and rows. Out: its features, from a file where another run or process left them.

A file's name is a hash of all that decides its content: the rows, the tokenizer, the lengths and texts of the recipe, and
the code of this room. It appears whole or not at all; a second process waits for the first.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from lib.data.sources import Row
from lib.errors import InputError

if TYPE_CHECKING:
    from lib.codecs.base import Codec, Feature

LENGTHS_AND_TEXTS = ("max_length", "doc_stride", "max_target_length", "text", "prefix")


def cached_features(codec: "Codec", rows: Sequence[Row], folder: Path, *, training: bool) -> "list[Feature]":
    """`codec.encode(rows)` by way of a file in `folder`; raises InputError where there is no room for it."""
    path = folder / f"{cache_key(codec, rows, training=training)}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _read(path, codec)
            if found is None:
                found = codec.encode(rows, training=training)
                _write(path, found)
            return found
    except OSError as error:
        raise InputError(
            f"cannot keep tokenised rows in {folder} ({error.strerror or error}); make room there: what it holds can be deleted"
        ) from None


def cache_key(codec: "Codec", rows: Sequence[Row], *, training: bool) -> str:
    """Sixteen hex digits; two heads that would encode the rows alike have the same."""
    template = {name: getattr(codec.recipe, name) for name in LENGTHS_AND_TEXTS}
    wrap = [codec.before, codec.between, codec.after, codec.cell.head.new_token]
    digest = hashlib.sha256(json.dumps([type(codec).__name__, training, template, wrap]).encode())
    digest.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _write(path: Path, features: "Sequence[Feature]") -> None:
    part = path.with_suffix(".part")
    try:
        pq.write_table(pa.Table.from_pylist([asdict(feature) for feature in features]), part, compression="zstd")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, codec: "Codec") -> "list[Feature] | None":
    from lib.codecs.base import Feature

    if not path.is_file():
        return None
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid:  # not written by us, or by a disk that failed: write it again
        return None
    return [Feature(example=r["example"], input_ids=r["input_ids"], **codec.restored(r["target"], r["extra"])) for r in rows]
