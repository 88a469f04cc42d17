"""Bitsandbytes' 4-bit layers on a CPU. In: nothing. Out: what they compute in bf16 stays bf16, with the same values.

torch's linear layers answer in autocast's type. Bitsandbytes computes in it as well, but widens each answer to the type of its
input, which is fp32 after a normalization. No digit is gained, and what follows (an activation, dropout, attention's own cast
to bf16, and all of it backward) goes over twice the bytes. For the backward pass it unpacks weights to the type that they had,
fp32, and then rounds them to bf16.
"""

from copy import copy
from functools import cache
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor

_widened = bnb.nn.Linear4bit.forward


def answer_in_autocast(yes: bool) -> None:
    """Let 4-bit layers on this process's CPU that compute in autocast's type answer in it from now on, or as they come."""
    bnb.nn.Linear4bit.forward = _narrow if yes else _widened


def _narrow(self: bnb.nn.Linear4bit, x: Tensor) -> Tensor:
    """The layer's own forward pass, which answers in its input's type, for an input of the type that it computes in."""
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and self.compute_dtype is torch.get_autocast_dtype("cpu"):
        x = x.to(self.compute_dtype)
    y: Tensor = _widened(self, x)
    return y


@cache
def unpack_once() -> None:
    """Let backward passes on this process's CPU unpack weights to bf16 from now on, where fp32 would be rounded to it."""
    product: Any = bnb.autograd._functions.MatMul4Bit
    backward = product.backward

    def at_once(ctx: Any, gradient: Tensor) -> Any:
        kinds = (gradient.device.type, gradient.dtype, ctx.state.dtype)
        if kinds == ("cpu", torch.bfloat16, torch.float32):
            ctx.state = copy(ctx.state)
            ctx.state.dtype = torch.bfloat16
        return backward(ctx, gradient)

    product.backward = staticmethod(at_once)
