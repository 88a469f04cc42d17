"""Features on disk. In: features one after another. Out: an Arrow file, and a sequence that makes features when asked for.

A stored feature is plain numbers: its example, its tokens, and what its codec makes of its target and its extra. The file is
mapped into memory, not read: a number takes two bytes, and the kernel may take even these back.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from tunegrid.codecs.base import Codec, Feature

BLOCK = 1000  # features a record batch
COLUMNS = ("input_ids", "target", "extra")
TYPES: dict[str, Any] = {"H": pa.uint16(), "I": pa.uint32()}  # by the code of `array`, the narrower one first


class StoredFeatures(Sequence[Feature]):
    """The features of a file, equal to those that were written.

    Attributes:
        lengths: tokens of each feature.
    """

    def __init__(self, path: Path, codec: Codec) -> None:
        """Map the file; raises ArrowInvalid where it is not a whole one."""
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._examples = [batch.column("example").to_numpy() for batch in batches]
        self._columns = [[_pieces(batch.column(name)) for name in COLUMNS] for batch in batches]
        self._restored: Callable[[list[int], list[int]], dict[str, Any]] = codec.restored
        self.lengths = array("i")
        for [starts, _], *_ in self._columns:
            self.lengths.frombytes(np.diff(starts).tobytes())

    def __len__(self) -> int:
        """How many features."""
        return len(self.lengths)

    @overload
    def __getitem__(self, place: int) -> Feature: ...
    @overload
    def __getitem__(self, place: slice) -> list[Feature]: ...
    def __getitem__(self, place: int | slice) -> Feature | list[Feature]:
        """A feature, made anew; of a slice, a list."""
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        block, row = divmod(range(len(self))[place], BLOCK)
        ids, target, extra = (values[starts[row] : starts[row + 1]].tolist() for starts, values in self._columns[block])
        return Feature(example=int(self._examples[block][row]), input_ids=ids, **self._restored(target, extra))


def _pieces(column: Any) -> tuple[Any, Any]:
    """Where each row of a column of lists starts, and all its values."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def write_features(path: Path, features: Callable[[], Iterable[Feature]], codec: Codec) -> None:
    """Write the features that a call gives: two bytes per number, or four where one does not fit into two."""
    narrow, wide = TYPES
    try:
        _write(path, iter(features()), codec, narrow)
    except OverflowError:
        _write(path, iter(features()), codec, wide)


def _write(path: Path, features: Iterator[Feature], codec: Codec, code: str) -> None:
    schema = pa.schema([("example", pa.uint32()), *((name, pa.list_(TYPES[code])) for name in COLUMNS)])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while block := list(islice(features, BLOCK)):
            writer.write_batch(_batch(block, codec, code))


def _batch(block: Sequence[Feature], codec: Codec, code: str) -> Any:
    rows = [(feature.input_ids, *codec.packed(feature)) for feature in block]
    columns = [_column([row[i] for row in rows], code) for i in range(len(COLUMNS))]
    examples = pa.array([feature.example for feature in block], pa.uint32())
    return pa.record_batch([examples, *columns], names=["example", *COLUMNS])


def _column(rows: Sequence[list[int]], code: str) -> Any:
    """A column of lists; raises OverflowError where a number has no room."""
    values, starts = array(code), array("i", [0])
    for row in rows:
        values.fromlist(row)
        starts.append(len(values))
    numbers = pa.Array.from_buffers(TYPES[code], len(values), [None, pa.py_buffer(values)])
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), numbers)


def lengths_of(features: Sequence[Feature]) -> Sequence[int]:
    """Tokens of each feature; stored ones are not made for it."""
    return features.lengths if isinstance(features, StoredFeatures) else [len(feature.input_ids) for feature in features]
