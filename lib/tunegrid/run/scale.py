"""fp16's loss scale: tells whether an optimizer step was lost.

A fused optimizer skips a step that overflows inside its kernel, so only the device knows: the scale is lower afterwards.
Asking for it (`get_scale`) would make the host wait at the end of every update, and the GPU then wait for the host. So the
answer travels to the host by itself, and is read when the next step is due: the GPU has a whole forward and backward pass
queued behind it by then, and never runs dry.
"""

from typing import Any

import torch
from torch import Tensor


class LossScale:
    """Whether fp16 lost the last step; it never does in another precision."""

    def __init__(self, scaler: Any | None) -> None:
        """`scaler` is a `torch.amp.GradScaler`, or None where losses are not scaled."""
        self.scaler = scaler
        self._lost: Tensor | None = None
        self._arrived: Any = None

    @property
    def factor(self) -> float:
        """By how much losses, and their gradients, are multiplied now; waits for the device."""
        return float(self.scaler.get_scale()) if self.scaler else 1.0

    def step(self, optimizer: Any) -> None:
        """Let accelerate's optimizer step, and send the answer on its way.

        Without a scale its inner one steps: accelerate's looks for another package on the disk each time.
        """
        if not self.scaler:
            optimizer.optimizer.step()
            return
        before = self.scaler._get_scale_async().clone()  # `get_scale` without waiting
        optimizer.step()
        lost = self.scaler._get_scale_async() < before
        if lost.is_cuda:
            self._lost = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._lost.copy_(lost, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self._lost = lost

    def lost(self) -> bool:
        """Whether the last step was lost; waits until the device has made it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._lost is not None and bool(self._lost)
