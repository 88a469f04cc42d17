"""4-bit layers on a CPU: a backward pass unpacks weights at once, and gradients are bitsandbytes' own, bit for bit."""

import subprocess
import sys

UNPACKED = """
import bitsandbytes as bnb
import torch
from lib.run.packed import unpack_once

torch.manual_seed(0)
kinds, plain = [], bnb.functional.dequantize_4bit


def noted(packed, state):
    weights = plain(packed, state)
    kinds.append(weights.dtype)
    return weights


bnb.functional.dequantize_4bit = noted


def gradient(computes, trained):
    layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=computes, quant_type="nf4")
    layer.load_state_dict({"weight": weights})
    layer = layer.to("cpu")
    x = rows.clone().to(trained).requires_grad_()
    layer(x).backward(torch.ones(3, 32, dtype=trained))
    assert layer.weight.quant_state.dtype is torch.float32, "what the layer keeps has changed"
    return x.grad


weights, rows = torch.randn(32, 64), torch.randn(3, 64)
nothing = torch.zeros(0, 64, requires_grad=True)
cases = [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)]
before = [gradient(*case) for case in cases]
assert kinds == [torch.float32] * 3, "bitsandbytes does it by itself: unpack_once is not needed"
unpack_once(), unpack_once()
after = [gradient(*case) for case in cases]
assert kinds[3:] == [torch.bfloat16, torch.bfloat16, torch.float32]
assert all(map(torch.equal, before, after))
bnb.nn.Linear4bit(64, 32, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")(nothing).sum().backward()
assert nothing.grad.shape == (0, 64)
del bnb.autograd._functions.MatMul4Bit  # as in a release that computes it elsewhere
unpack_once.__wrapped__()
"""


def test_the_backward_pass_unpacks_to_bf16_at_once():
    """With the same gradients; what is computed in fp32 is unpacked to fp32. In a process of its own: it lasts."""
    subprocess.run([sys.executable, "-W", "error", "-c", UNPACKED], check=True, timeout=60)
