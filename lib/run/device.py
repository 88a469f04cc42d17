"""Where a cell runs and in which precision. In: a profile's wish and a recipe's. Out: what this machine can do."""

import torch

from lib.errors import InputError
from lib.grid.cells import Cell


def resolve_device(wish: str | None) -> torch.device:
    """The wished device, or CUDA where there is one; raises InputError for one that is not here."""
    wish = wish or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise InputError(f"--device {wish!r} is no device; say cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {wish}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here")
    return device


def resolve_precision(cell: Cell, device: torch.device) -> str:
    """The recipe's precision, or bf16 in place of fp16 where fp16 does not hold.

    On a CPU fp16 arithmetic is emulated; some backbones overflow in it on any device.
    """
    wish = cell.recipe.precision
    return "bf16" if wish == "fp16" and (device.type == "cpu" or cell.backbone.overflows_fp16) else wish
