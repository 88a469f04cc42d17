"""Products of bf16 matrices on a CPU. In: nothing. Out: torch multiplies them sooner, where the CPU has no units for it.

Without AMX, torch's products of bf16 take two to five times as long as those of fp32. Here both matrices are widened to fp32,
multiplied, and the result is rounded to bf16 once. That is what bf16 units do, too: each product of two elements is exact in
fp32, and sums are taken in fp32. So only the order of a sum differs.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lib.machine import cpu_field
from lib.run.kernels import replace_cpu_kernels

SMALL = 32  # rows, columns or summands; below it, widening costs as much as it saves


@dataclass
class _Wish:
    """What replaces torch's kernels stays in place, and heeds this."""

    widen: bool = True


_wish = _Wish()


def bf16_is_slow() -> bool:
    """Whether this CPU is an x86 that multiplies bf16 more slowly than fp32, as far as we know.

    AMD's units for bf16 (AVX512-BF16) were not measured, so they are left to torch.
    """
    flags = cpu_field("flags").split()
    left_to_torch = "amx_bf16" in flags or ("avx512_bf16" in flags and cpu_field("vendor_id") != "GenuineIntel")
    return bool(flags) and not left_to_torch


def multiply_bf16_sooner(yes: bool) -> None:
    """Let torch multiply on this process's CPU with the functions of this module from now on, or as it comes."""
    _wish.widen = yes
    if yes:
        _replaced()


@cache
def _replaced() -> torch.library.Library:
    return replace_cpu_kernels({"mm": mm, "addmm": addmm, "bmm": bmm})  # which live as long


def mm(left: Tensor, right: Tensor) -> Tensor:
    """The product (N, M) of (N, K) and (K, M)."""
    if _wide(left, right):
        return torch.mm(left.float(), right.float(), out=left.new_empty(_shape(left, right), dtype=torch.float32)).bfloat16()
    return torch.mm(left, right, out=left.new_empty(_shape(left, right)))


def addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The product (N, M), times `alpha`, and `beta` times a bias that is broadcast to it."""
    if _wide(left, right):
        sums = left.new_empty(_shape(left, right), dtype=torch.float32)
        return torch.addmm(bias.float(), left.float(), right.float(), beta=beta, alpha=alpha, out=sums).bfloat16()
    return torch.addmm(bias, left, right, beta=beta, alpha=alpha, out=left.new_empty(_shape(left, right)))


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """The products (B, N, M) of (B, N, K) and (B, K, M)."""
    if _wide(left, right):
        return torch.bmm(left.float(), right.float(), out=left.new_empty(_shape(left, right), dtype=torch.float32)).bfloat16()
    return torch.bmm(left, right, out=left.new_empty(_shape(left, right)))


def _wide(left: Tensor, right: Tensor) -> bool:
    """Whether two matrices are widened."""
    if not _wish.widen or not left.dtype == right.dtype == torch.bfloat16:
        return False
    least: int = min(*left.shape[-2:], right.shape[-1])
    return least >= SMALL


def _shape(left: Tensor, right: Tensor) -> tuple[int, ...]:
    return (*left.shape[:-1], right.shape[-1])
