"""Products of bf16 matrices on a CPU. In: nothing. Out: torch multiplies them sooner, where the CPU has no units for it.

Without AMX, torch's products of bf16 take longer than those of fp32. Here both matrices are widened to fp32 and multiplied, and
the result is rounded to bf16 once. That is what bf16 units do, too: each product of two elements is exact in fp32, and sums
are taken in fp32. So only the order of a sum differs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lib.machine import cpu_field, has_amx
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
    left_to_torch = has_amx() or ("avx512_bf16" in flags and cpu_field("vendor_id") != "GenuineIntel")
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
    return _multiplied(torch.mm, left, right)


def addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """The product (N, M), times `alpha`, and `beta` times a bias that is broadcast to it."""
    return _multiplied(torch.addmm, bias, left, right, beta=beta, alpha=alpha)


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """The products (B, N, M) of (B, N, K) and (B, K, M)."""
    return _multiplied(torch.bmm, left, right)


def _multiplied(multiply: Callable[..., Tensor], *operands: Tensor, **factors: float) -> Tensor:
    """What `multiply` makes of the last two operands; with `out`, it is a kernel of torch's that is not replaced."""
    left, right = operands[-2:]
    shape = *left.shape[:-1], right.shape[-1]
    if not _wide(left, right):
        return multiply(*operands, **factors, out=left.new_empty(shape))
    sums = left.new_empty(shape, dtype=torch.float32)
    return multiply(*(operand.float() for operand in operands), **factors, out=sums).bfloat16()


def _wide(left: Tensor, right: Tensor) -> bool:
    """Whether two matrices are widened."""
    if not _wish.widen or not left.dtype == right.dtype == torch.bfloat16:
        return False
    least: int = min(*left.shape[-2:], right.shape[-1])
    return least >= SMALL
