"""In which order rows are trained on, and how many at once. In: lengths of features, a seed, an epoch. Out: batches, as places.

No stage before or after changes which rows an update has.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

import torch

from lib.codecs.base import Feature
from lib.grid.cells import Cell

T = TypeVar("T")
ROOM = 2048  # tokens with padding in a pass: half as many were slower with AMX, no faster without; twice as many won nothing
FEWER = f"on a CPU, an update's rows are cut anew by length, up to {ROOM} tokens a pass, where that makes fewer passes"
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
        The places of each batch's features.
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


def micro_batches(group: Sequence[Sequence[Feature]], cell: Cell, device: torch.device) -> Sequence[Sequence[Feature]]:
    """An update's micro-batches as they go through the model of a process alone.

    On a CPU, where small batches cost more than they save, rows are sorted by length and cut anew where that makes fewer. A GPU
    and a footprint have the recipe's micro-batches, which memory is measured with, and so have micro backbones.
    """
    if device.type != "cpu" or cell.profile.micro or cell.profile.random_weights:
        return group
    anew: list[list[Feature]] = []
    for feature in sorted((feature for features in group for feature in features), key=lambda feature: len(feature.input_ids)):
        if not anew or (len(anew[-1]) + 1) * len(feature.input_ids) > ROOM:
            anew.append([])
        anew[-1].append(feature)
    return anew if len(anew) < len(group) else group
