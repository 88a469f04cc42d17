"""Marks of weights, to tell whether they changed and where they came from. In: tensors. Out: pairs of whole numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Mark = tuple[int, int]


def marks(tensors: Iterable[Tensor]) -> list[Mark]:
    """A mark of each tensor: the sums of all its bits taken as integers, and of every other one; equal bits, equal marks.

    Not a cryptographic hash: it tells training from standing still, and does so where the tensor is, without copying it.
    """
    sums = [_sums(tensor) for tensor in tensors]
    pairs: list[list[int]] = torch.stack(sums).tolist() if sums else []
    return [(first, second) for first, second in pairs]


def _sums(tensor: Tensor) -> Tensor:
    bits = tensor.detach().reshape(-1)
    bits = bits.view(torch.int32) if bits.element_size() == 4 else bits.view(torch.uint8)
    return torch.stack([bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)])


def model_marks(model: nn.Module) -> dict[str, Mark]:
    """A mark of every parameter, by name."""
    named = dict(model.named_parameters())
    return dict(zip(named, marks(named.values()), strict=True))
