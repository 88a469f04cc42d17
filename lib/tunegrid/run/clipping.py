"""Clipping of gradients. In: what trains, and the recipe's bound. Out: norms before it, and of the first update after it.

Norms stay on the device until they are fetched, so that an update does not wait for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunegrid.run.course import Training
from tunegrid.run.ranks import full_tensor


class Clipping:
    """Clips the gradients of each update.

    Attributes:
        bound: of the norm of all gradients together; None does not clip.
    """

    def __init__(self, accelerator: Any, trained: Sequence[Tensor], bound: float | None) -> None:
        """Clip the gradients of `trained`."""
        self.bound, self._accelerator, self._trained = bound, accelerator, trained
        self._norms: list[Tensor] = []
        self._clipped: Tensor | None = None

    def clip(self, course: Training) -> None:
        """Clip the gradients of the update that `course` is about to make."""
        if self.bound is None:
            course.gradient_norms.append(None)
            return
        self._norms.append(full_tensor(self._accelerator.clip_grad_norm_(self._trained, self.bound)))
        if not course.updates:
            self._clipped = full_tensor(nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None]))

    def fetch(self, course: Training) -> None:
        """Bring the norms to the host."""
        if self._norms:
            course.gradient_norms += torch.stack(self._norms).tolist()
            self._norms = []
        if self._clipped is not None:
            course.clipped_norm, self._clipped = float(self._clipped), None
