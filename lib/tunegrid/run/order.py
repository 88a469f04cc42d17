"""Decides in which order rows are trained on, and how many at once.

No stage before or after changes which rows an update has.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

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
