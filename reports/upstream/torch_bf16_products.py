"""On an x86 CPU without AMX, torch multiplies bf16 matrices more slowly than fp32 ones.

Widening bf16 matrices to fp32 first is faster. Exit codes: see README.md.
`ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16` hides AMX from torch's products.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from timeit import timeit

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


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply bf16 matrices with exact products and fp32 sums, like bf16 units, and round once."""
    return (left.float() @ right.float()).bfloat16()


print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "as it comes")
if "avx2" not in cpu or (
    "amx_bf16" in cpu and isa not in ("AVX512_CORE", "AVX512_CORE_BF16", "AVX2")
):
    print("this CPU is no x86, or has AMX, where torch's way is the faster one")
    sys.exit(2)
print(f"instructions for products: {isa}")
torch.manual_seed(0)
for rows, inner, columns in (
    [(64, 64, 96)] if QUICK else [(1024, 768, 768), (1024, 768, 3072), (4096, 512, 512)]
):
    left, right = torch.randn(rows, inner).bfloat16(), torch.randn(inner, columns).bfloat16()
    exact = left.double() @ right.double()
    theirs, ours = (
        float((result - exact).abs().max() / exact.abs().max())
        for result in (left @ right, product(left, right))
    )
    print(f"largest error, of the largest element: {theirs:.1e}, proposed {ours:.1e}")
    if ours > max(theirs, 2**-8):
        sys.exit("the results differ by more than rounding")
    both = (left, right)
    race(
        f"({rows}, {inner}) x ({inner}, {columns})",
        lambda both=both: both[0] @ both[1],
        lambda both=both: product(*both),
    )
