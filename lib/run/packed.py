"""Weights of bitsandbytes' 4-bit layers on a CPU. In: nothing. Out: a backward pass unpacks them sooner, to the same values.

For the backward pass bitsandbytes unpacks weights to the type that they had before, fp32, and then rounds them to the type of
the gradients. Where that is bf16, they are unpacked to it at once, as bitsandbytes does it for the forward pass.
"""

from copy import copy
from functools import cache
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor


@cache
def unpack_once() -> None:
    """Let backward passes on this process's CPU unpack weights to bf16 from now on, where fp32 would be rounded to it.

    A release that has no such product keeps its own way.
    """
    product: Any = getattr(bnb.autograd._functions, "MatMul4Bit", None)
    if product is None:
        return
    backward = product.backward

    def at_once(ctx: Any, gradient: Tensor) -> Any:
        state = getattr(ctx, "state", None)  # an empty input has none
        if state is not None and (gradient.device.type, gradient.dtype, state.dtype) == ("cpu", torch.bfloat16, torch.float32):
            ctx.state = copy(state)
            ctx.state.dtype = torch.bfloat16
        return backward(ctx, gradient)

    product.backward = staticmethod(at_once)
