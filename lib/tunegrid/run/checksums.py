"""Checksums of weights, pairs of integers: whether a weight changed, and from which checkpoint it is."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Checksum = tuple[int, int]
INTEGERS = {4: torch.int32, 2: torch.int16}  # by bytes an element; any other size is read byte by byte


def checksums(tensors: Iterable[Tensor]) -> list[Checksum]:
    """A checksum of each tensor: sums of all its bits taken as integers, and of every other one; equal bits, equal sums.

    A checksum is not a cryptographic hash. It tells trained weights from unchanged ones, on the device, without a copy.
    """
    sums = [_sums(tensor) for tensor in tensors]
    pairs: list[list[int]] = torch.stack(sums).tolist() if sums else []
    return [(first, second) for first, second in pairs]


def _sums(tensor: Tensor) -> Tensor:
    bits = tensor.detach().reshape(-1)
    bits = bits.view(INTEGERS.get(bits.element_size(), torch.uint8))
    return torch.stack([bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)])


def model_checksums(model: nn.Module) -> dict[str, Checksum]:
    """A checksum of every parameter, by name."""
    named = dict(model.named_parameters())
    return dict(zip(named, checksums(named.values()), strict=True))
