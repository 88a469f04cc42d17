"""bitsandbytes on a CPU: each backward pass unpacks 4-bit weights to fp32 and rounds to bf16."""

import sys
from collections.abc import Callable
from copy import copy
from functools import partial
from statistics import median
from timeit import timeit

import bitsandbytes as bnb
import torch

QUICK = "--quick" in sys.argv


def race(label: str, library: Callable[[], object], proposed: Callable[[], object]) -> None:
    """Time both ways in turn; print their medians and the proposed way's median speedup."""
    rounds = [
        [1e3 * timeit(way, number=1) for way in (library, proposed)]
        for _ in range(2 if QUICK else 10)
    ]
    # The first round warms up.
    old, new = (median(times) for times in zip(*rounds[1:], strict=True))
    gains = sorted(before / after for before, after in rounds[1:])
    says = (
        f"{median(gains):.2f} x ({gains[0]:.2f} to {gains[-1]:.2f})"
        if median(gains) > 1.05
        else "no gain here"
    )
    print(f"{label:34} {old:8.2f} ms, proposed {new:8.2f} ms: {says}")


print(
    f"bitsandbytes {bnb.__version__}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
)
torch.manual_seed(0)
for tokens in (32,) if QUICK else (128, 1024):
    given = torch.randn(tokens, 768, dtype=torch.bfloat16, requires_grad=True)
    packed, state = bnb.functional.quantize_4bit(
        torch.randn(3072, 768), quant_type="nf4", compress_statistics=True
    )
    outputs = [bnb.matmul_4bit(given, packed.t(), quant_state=state) for _ in range(2)]
    if not hasattr(outputs[1].grad_fn, "state"):
        print("this release keeps no state of the weights for the backward pass")
        sys.exit(2)
    outputs[1].grad_fn.state = copy(state)
    outputs[1].grad_fn.state.dtype = torch.bfloat16  # the type that the backward pass unpacks to
    slope = torch.randn_like(outputs[0])
    passes = [partial(torch.autograd.grad, out, given, slope, retain_graph=True) for out in outputs]
    if not torch.equal(passes[0]()[0], passes[1]()[0]):
        sys.exit("the gradients differ")
    race(f"backward pass, {tokens} x 768 -> 3072", *passes)
