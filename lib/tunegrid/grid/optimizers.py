"""Makes optimizers by the names that `TrainingArguments.optim` has.

torch and bitsandbytes are imported when one is made: listing cells needs neither.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups, float], "torch.optim.Optimizer"]


def adamw_torch(groups: ParameterGroups, learning_rate: float) -> "torch.optim.Optimizer":
    """Torch's AdamW, its fused implementation."""
    import torch

    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def adamw_bnb_8bit(groups: ParameterGroups, learning_rate: float) -> "torch.optim.Optimizer":
    """Bitsandbytes' AdamW, whose moments take 8 bits."""
    import bitsandbytes as bnb

    optimizer: torch.optim.Optimizer = bnb.optim.AdamW8bit(groups, lr=learning_rate)
    return optimizer


OPTIMIZERS: Mapping[str, OptimizerFactory] = {"adamw_torch": adamw_torch, "adamw_bnb_8bit": adamw_bnb_8bit}
