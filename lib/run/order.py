"""In which order rows are trained on. In: features, a seed, an epoch. Out: batches. No stage before or after changes it."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

from lib.codecs.base import Feature

T = TypeVar("T")
BUCKET = 20  # batches sorted by length together: wide enough to save padding, narrow enough to keep the order random


def epoch_batches(features: Sequence[Feature], size: int, seed: int, epoch: int) -> list[list[Feature]]:
    """One epoch in batches of like length: shuffle, sort within buckets, shuffle the batches.

    The order depends on the seed and the epoch only: all methods of a triple see the same.
    """
    rng = Random(f"{seed}-{epoch}")
    shuffled = rng.sample(list(features), len(features))
    batches = [
        list(batch)
        for start in range(0, len(shuffled), size * BUCKET)
        for batch in chunks(sorted(shuffled[start : start + size * BUCKET], key=lambda f: len(f.input_ids)), size)
    ]
    rng.shuffle(batches)
    return batches


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Pieces of `size` items; the last one may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
