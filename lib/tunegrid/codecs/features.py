"""Caches the features that a codec makes from rows, in memory or on disk.

If the profile has a cache folder, features go there, so that other runs and processes can use them:
`datasets` writes them to an Arrow file and maps the file into memory. Otherwise they stay in memory
for later cells of the same process. The key is a hash of everything that determines the features:
the rows, the tokenizer, the task's columns, the recipe's lengths and texts, the tokens around a
text, the code that encodes, and the code of the libraries that tokenize.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from tunegrid.codecs.base import Codec, Feature
from tunegrid.data import sources
from tunegrid.data.sources import Row
from tunegrid.machine import package_digest

RECIPE_FIELDS = ("max_length", "doc_stride", "max_target_length", "text", "prefix")
TASK_FIELDS = ("text", "text_pair", "target", "labels", "messages")
TOKEN_NAMES = ("before", "between", "after", "lead", "end_id")  # attributes that a codec may have
ROW_BLOCK = 1000  # rows encoded together
# Another release or commit of one of these libraries changes the key.
TOKENIZER_LIBRARIES = ("transformers", "tokenizers")
SHARED = 18  # lists in memory: training and test rows of three tasks with three tokenizers
LARGEST = 10_000  # maximum features of a list in memory, since users may have many rows
CODEC_FILES = [*sorted(Path(__file__).parent.glob("*.py")), Path(sources.__file__)]

_by_codec: dict[tuple[type[Codec], str], Sequence[Feature]] = {}


class StoredFeatures(Sequence[Feature]):
    """Features stored in a file; `lengths` holds the token count of each feature."""

    def __init__(self, table: Any, codec: Codec) -> None:
        """Takes features from a `datasets.Dataset`, which may be mapped into memory."""
        self._table, self._codec = table, codec
        self.lengths: list[int] = table["length"][:]

    def __len__(self) -> int:
        """The number of features."""
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        """Rebuilds a feature, or a list of features for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row = self._table[range(len(self))[index]]
        return self._codec.restore_feature(json.loads(row["feature"]))


def get_lengths(features: Sequence[Feature]) -> Sequence[int]:
    """The token count of each feature, without rebuilding stored features."""
    if isinstance(features, StoredFeatures):
        return features.lengths
    return [len(feature.input_ids) for feature in features]


def get_features(codec: Codec, rows: Sequence[Row], *, training: bool) -> Sequence[Feature]:
    """The features of `rows`, cached on disk if the profile has a usable folder, else in memory.

    Lists of more than `LARGEST` features are not kept in memory.
    """
    folder = codec.cell.profile.feature_cache
    key = cache_key(codec, rows, training=training)
    if folder and len(rows):  # an empty table has no columns
        try:
            table = _load_table(folder / f"{key}.arrow", codec, rows, training=training)
            return StoredFeatures(table, codec)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise  # not caused by a full disk or a folder that cannot be created
    # The key holds the class itself, since two classes made by one function share a name.
    name = (type(codec), key)
    if name in _by_codec:
        return _by_codec[name]
    features = codec.encode(rows, training=training)
    if len(features) <= LARGEST:
        if len(_by_codec) == SHARED:
            del _by_codec[next(iter(_by_codec))]
        _by_codec[name] = features
    return features


def cache_key(codec: Codec, rows: Sequence[Row], *, training: bool) -> str:
    """A hash, in sixteen hex digits, of everything that determines the features of these rows."""
    decisive = [
        f"{type(codec).__module__}.{type(codec).__qualname__}",
        training,
        [getattr(codec.recipe, name) for name in RECIPE_FIELDS],
        [getattr(codec.task, name) for name in TASK_FIELDS],
        [getattr(codec, name, None) for name in TOKEN_NAMES],
        codec.tokenizer.chat_template,
        [package_digest(name) for name in TOKENIZER_LIBRARIES],
    ]
    digest = hashlib.sha256(json.dumps(decisive, default=repr).encode())
    digest.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    for path in CODEC_FILES:
        digest.update(path.read_bytes())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _load_table(path: Path, codec: Codec, rows: Sequence[Row], *, training: bool) -> Any:
    """Loads the table from its file; rebuilds a missing or damaged file in blocks."""
    import datasets
    import pyarrow

    def encode_block(block: dict[str, list[int]]) -> dict[str, list[Any]]:
        start = block["row"][0]
        features = codec.encode(rows[start : block["row"][-1] + 1], training=training)
        texts = []
        for feature in features:
            values = vars(replace(feature, example=start + feature.example))
            texts.append(json.dumps(values, default=vars))
        return {"length": [*get_lengths(features)], "feature": texts}

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return datasets.Dataset.from_file(str(path))
    except (OSError, pyarrow.ArrowInvalid):
        path.unlink(missing_ok=True)
    columns = {"length": datasets.Value("uint32"), "feature": datasets.Value("large_string")}
    return datasets.Dataset.from_dict({"row": range(len(rows))}).map(
        encode_block,
        batched=True,
        batch_size=ROW_BLOCK,
        writer_batch_size=ROW_BLOCK,
        remove_columns=["row"],
        features=datasets.Features(columns),
        cache_file_name=str(path),  # the file appears whole or not at all
        new_fingerprint=path.stem,
    )


T = TypeVar("T")
BUCKET = 20  # batches in a group sorted by length: saves padding, keeps the order random


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's batches of feature indices; lengths within a batch are similar.

    Shuffles, sorts within buckets, then shuffles the batches. The order depends only on the
    lengths, the batch size, the run's seed and the epoch (counted from 0), not on the method.
    """
    rng = Random(f"{seed}-{epoch}")
    order = rng.sample(range(len(lengths)), len(lengths))
    batches = []
    for bucket in chunks(order, size * BUCKET):
        by_length = sorted(bucket, key=lengths.__getitem__)
        batches += [list(batch) for batch in chunks(by_length, size)]
    rng.shuffle(batches)
    return batches


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cuts items into pieces of `size`; the last piece may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
