"""Bitsandbytes' 4-bit layers on a CPU. In: nothing. Out: what they compute in bf16 stays bf16.

torch's linear layers answer in autocast's type. Bitsandbytes computes in it as well, but widens each answer to the type of its
input, which is fp32 after a normalization. No digit is gained, and what follows (an adapter's sum, an activation, dropout,
attention's own cast to bf16, and all of it backward) goes over twice the bytes. For the backward pass it unpacks weights to the
type that they had, fp32, and then rounds them to bf16.
"""

from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor


@dataclass
class _Wish:
    """What replaces a layer's forward pass stays in place, and heeds this."""

    narrow: bool = False


_wish = _Wish()


def answer_in_autocast(yes: bool) -> None:
    """Let 4-bit layers on this process's CPU that compute in autocast's type answer in it from now on, or as they come."""
    _wish.narrow = yes
    if yes:
        _replace_forward()


@cache
def _replace_forward() -> None:
    """Bitsandbytes answers in its input's type: give it an input of the type that it computes in."""
    layer: Any = bnb.nn.Linear4bit
    forward = layer.forward

    def narrow(self: Any, x: Tensor) -> Tensor:
        if _wish.narrow and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            x = x.to(kind) if self.compute_dtype is kind else x
        answer: Tensor = forward(self, x)
        return answer

    layer.forward = narrow


@cache
def unpack_once() -> None:
    """Let backward passes on this process's CPU unpack weights to bf16 from now on, where fp32 would be rounded to it."""
    product: Any = bnb.autograd._functions.MatMul4Bit
    backward = product.backward

    def at_once(ctx: Any, gradient: Tensor) -> Any:
        state = getattr(ctx, "state", None)  # an empty input has none
        if state is not None and (gradient.device.type, gradient.dtype, state.dtype) == ("cpu", torch.bfloat16, torch.float32):
            ctx.state = copy(state)
            ctx.state.dtype = torch.bfloat16
        return backward(ctx, gradient)

    product.backward = staticmethod(at_once)
