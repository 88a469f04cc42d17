"""Bugs of the update, put back into the libraries: dropout, backward, optimizer, schedule, clipping."""

import warnings
from typing import Any

import accelerate
import bitsandbytes as bnb
import torch
from bitsandbytes.autograd._functions import MatMul4Bit
from torch.optim.lr_scheduler import LRScheduler

LATE = 1e9  # at this step both of Adam's bias corrections are 1


def signed_second_moments(monkeypatch: Any) -> None:
    """8-bit Adam keeps second moments, which are never negative, in the map for signed numbers: half of its levels are lost."""
    create = bnb.functional.create_dynamic_map
    monkeypatch.setattr(bnb.functional, "create_dynamic_map", lambda signed=True, **options: create(signed=True, **options))


def schedule_stepped_twice(monkeypatch: Any) -> None:
    """One call steps the schedule once for each of two processes. Accelerate's scheduler does so; ours is torch's own."""
    step = LRScheduler.step

    def twice(self: Any, *args: Any) -> None:
        step(self, *args)
        if self._step_count > 1:  # the first step is the one that makes the schedule
            step(self)

    monkeypatch.setattr(LRScheduler, "step", twice)


def norm_without_clipping(monkeypatch: Any) -> None:
    """The norm of the gradients is returned, the gradients stay as they are."""

    def measured(self: Any, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)

    monkeypatch.setattr(accelerate.Accelerator, "clip_grad_norm_", measured)


def moments_without_correction(monkeypatch: Any) -> None:
    """Adam's moments start at 0 and are not corrected for it. The correction of step t divides by 1 - beta^t."""
    update = torch._fused_adamw_

    def uncorrected(*lists: Any, **options: Any) -> None:
        *states, steps = lists
        update(*states, [torch.full_like(step, LATE) for step in steps], **options)

    monkeypatch.setattr(torch, "_fused_adamw_", uncorrected)


def nothing_is_dropped(monkeypatch: Any) -> None:
    """Torch's kernel of `bernoulli_` on a CPU gives ones alone, from which dropout makes a mask."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that a kernel is replaced, and that is meant
        library.impl("bernoulli_.float", lambda mask, p=0.5, generator=None: mask.fill_(1), "CPU")
    monkeypatch.setattr(torch.library, "planted", library, raising=False)  # which ends with it


def packed_layers_pass_half_the_gradient(monkeypatch: Any) -> None:
    """The backward pass of a 4-bit layer gives its input half of the gradient."""
    backward = MatMul4Bit.backward

    def halved(ctx: Any, gradient: Any) -> Any:
        return backward(ctx, gradient / 2)

    monkeypatch.setattr(MatMul4Bit, "backward", staticmethod(halved))
