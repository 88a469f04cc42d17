"""GELU by its tanh formula on a CPU. In: nothing. Out: transformers computes it sooner, by torch's own kernel.

transformers writes "gelu_new", which GPT-2 and the newer T5 have, as eight operations on tensors, and keeps what most of them
return for the backward pass. torch has the same formula as one kernel, which rounds once: transformers' "gelu_pytorch_tanh".
"""

from functools import cache
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu
from transformers import activations


@cache
def take_gelu_at_once() -> None:
    """Let transformers' "gelu_new" in this process be one kernel on a CPU from now on."""
    kind: Any = activations.NewGELUActivation
    written_out = kind.forward

    def at_once(self: Any, input: Tensor) -> Tensor:
        return gelu(input, approximate="tanh") if input.device.type == "cpu" else written_out(self, input)

    kind.forward = at_once
