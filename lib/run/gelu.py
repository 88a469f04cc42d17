"""GELU by its tanh formula on a CPU. In: nothing. Out: transformers computes it sooner, by torch's own kernel.

transformers writes "gelu_new", which GPT-2 and the newer T5 have, as eight operations on tensors, and keeps what most of them
return for the backward pass. torch has the same formula as one kernel, which rounds once: transformers' "gelu_pytorch_tanh".
A release whose "gelu_new" has other values keeps its own, for that is what a run is to show.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu
from transformers import activations

ALIKE = 1e-5  # in fp32: far above rounding, and far below what another formula makes (erf: 5e-4)


@cache
def take_gelu_at_once() -> None:
    """Let transformers' "gelu_new" in this process be one kernel on a CPU from now on, if it has that kernel's values."""
    kind: Any = activations.NewGELUActivation
    written_out = kind.forward
    points = torch.linspace(-10, 10, 2001, device="cpu")
    if not torch.allclose(written_out(kind(), points), gelu(points, approximate="tanh"), atol=ALIKE, rtol=0):
        return

    def at_once(self: Any, input: Tensor) -> Tensor:
        return gelu(input, approximate="tanh") if input.device.type == "cpu" else written_out(self, input)

    kind.forward = at_once
