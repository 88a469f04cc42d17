"""Clips gradients at the recipe's bound; their norms stay on the device until the log asks."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tunegrid.run.ranks import full_tensor


class Clipping:
    """Clips the gradients of each update.

    Attributes:
        bound: of the norm of all gradients together; None does not clip.
    """

    def __init__(self, accelerator: Any, trained: Sequence[Tensor], bound: float | None) -> None:
        """Clip the gradients of `trained`."""
        self.bound, self._accelerator, self._trained = bound, accelerator, trained

    def clip(self) -> Tensor | None:
        """Clip the gradients as they are now; return the norm that they had, or None where they are not clipped."""
        if self.bound is None:
            return None
        return full_tensor(self._accelerator.clip_grad_norm_(self._trained, self.bound))

    def norm(self) -> Tensor:
        """The norm that the gradients have now."""
        return full_tensor(nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None]))
