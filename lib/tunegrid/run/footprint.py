"""Measures the FLOPs and bytes that a cell takes at its full size; needs no checkpoint.

Before the timed updates, two others warm up the device: FLOPs are counted in the first, bytes in
the second.
"""

import math
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import TOKEN_ROWS
from tunegrid.record.record import Flops, Ledger
from tunegrid.run.build import base_type
from tunegrid.run.device import AUTOCAST, free_memory
from tunegrid.run.meter import parameter_counts, state_tensors, tensor_bytes, weight_tensors
from tunegrid.run.train import Trainer

FP32_BYTES = 4
# Sides of the square matrices whose product gives the device's peak.
MATRIX = {"cpu": 2048, "cuda": 8192}
MATRIX_SECONDS = 1.0  # minimum time spent on products
# What may be allocated on CUDA beside the ledger's tensors: the allocator's rounding, as a share;
# and bytes for a library's workspace, samples of weights, and the rests of large segments. Assumed,
# until a GPU has run.
CUDA_ROOM = 0.02
CUDA_EXTRA = 4 * 2**20
# The largest share of full fine-tuning's gradients and moments that an adapter may need.
ADAPTER_SHARE = 0.05
# The limit for quantized weights. In NF4, even T5's encoder, whose embeddings and wo stay in fp32,
# shrinks by a third.
WEIGHTS_SHARE = 0.75


@dataclass(kw_only=True)
class Footprint:
    """FLOPs and bytes of the two traced updates, and the device's best FLOP rate."""

    flops_per_step: int  # per update: matrix products and attention, forward and backward
    # The device's best rate on large matrices, at the cell's precision.
    matmul_flops_per_second: float
    # Held right after the optimizer's step: allocated on CUDA, in the counted tensors on a CPU.
    live_bytes: int
    peak_bytes: int  # the most bytes held during the second update


def trace(trainer: Trainer, baseline_bytes: int) -> Footprint:
    """Performs two updates; counts FLOPs in one and bytes beyond `baseline_bytes` in the other.

    On a CPU, the backbone has no dropout: with it, attention there holds all probabilities, which
    fused kernels of a GPU do not.
    """
    device = trainer.meter.device
    if device.type == "cuda":
        trainer.ddp_model.train()
    live_sizes: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=extra_flops()) as flops:
        trainer.update(next(trainer.updates(0)))
    group = next(trainer.updates(0))
    counter = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        tensors = weight_tensors(trainer.model) + state_tensors(trainer.optimizer)
        counter = TensorBytes(tensors)

    def note_live_bytes(*_: Any) -> None:
        if counter:
            live_sizes.append(counter.live)
        else:
            live_sizes.append(torch.cuda.memory_allocated(device) - baseline_bytes)

    hook = trainer.optimizer.optimizer.register_step_post_hook(note_live_bytes)
    with counter or nullcontext():
        trainer.update(group)
    hook.remove()
    peak = counter.peak if counter else torch.cuda.max_memory_allocated(device) - baseline_bytes
    return Footprint(
        flops_per_step=flops.get_total_flops(),
        matmul_flops_per_second=matmul_peak(device, trainer.log.precision),
        live_bytes=live_sizes[0],
        peak_bytes=peak,  # read before `matmul_peak` allocates its matrices
    )


def extra_flops() -> dict[Any, Any]:
    """FLOP formulas for fused attention and 4-bit products, which torch's counter may lack."""

    def attention(
        query: Sequence[int],
        key: Sequence[int],
        value: Sequence[int],
        *_: Any,
        **__: Any,
    ) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def attention_backward(gradient: Any, *operands: Any, **__: Any) -> int:
        return 2 * attention(*operands)  # each of the two products has two gradients

    def packed_product(
        inputs: Sequence[int],  # (..., K)
        packed: Any,
        shape: Sequence[int],  # (N, K), of the 4-bit matrix
        *_: Any,
        **__: Any,
    ) -> int:
        return 2 * math.prod(inputs) * shape[0]

    mapping: dict[Any, Any] = {torch.ops.bitsandbytes.gemm_4bit: packed_product}
    for kernel in (
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "flash_attention_for_cpu",
    ):
        name = f"_scaled_dot_product_{kernel}"
        mapping[getattr(torch.ops.aten, name)] = attention
        mapping[getattr(torch.ops.aten, f"{name}_backward")] = attention_backward
    return mapping


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors on a CPU, whose allocator keeps no count."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Starts with `tensors`; adds operators' floating-point outputs except fp64 and scalars."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {t.untyped_storage().data_ptr() for t in tensors}
        self.live = self.peak = tensor_bytes(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts its outputs until they are freed."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.ndim:
                continue
            if leaf.dtype is torch.float64:  # the reference AdamW, which is not part of training
                continue
            storage = leaf.untyped_storage()
            pointer = storage.data_ptr()
            size = storage.nbytes()
            if size and pointer not in self._known:
                self._known.add(pointer)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._release, pointer, size).atexit = False
        return result

    def _release(self, pointer: int, size: int) -> None:
        self._known.discard(pointer)
        self.live -= size


def baseline_bytes(device: torch.device) -> int:
    """Bytes allocated on a GPU before a model is loaded, with cuBLAS's workspaces; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    matrix = torch.ones(256, 256, device=device, requires_grad=True)
    (matrix @ matrix).sum().backward()  # type: ignore[no-untyped-call]
    del matrix
    return torch.cuda.memory_allocated(device)


@cache
def matmul_peak(device: torch.device, precision: str) -> float:
    """The highest FLOP/s over repeated products of large n x n matrices (2 n^3 FLOPs each)."""
    from torch.utils.benchmark import Timer  # takes 60 ms, and only footprints need it

    side = MATRIX[device.type]
    generator = torch.Generator(device).manual_seed(0)  # leaves the trainer's random state alone
    # Random values, since a GPU multiplies ones at a higher clock than it sustains in training.
    matrix = torch.randn(
        side,
        side,
        generator=generator,
        device=device,
        dtype=AUTOCAST.get(precision),
    )
    timer = Timer(
        "torch.mm(matrix, matrix)",
        globals={"torch": torch, "matrix": matrix},
        num_threads=torch.get_num_threads(),
    )
    # The timer warms up and synchronizes with a GPU.
    seconds = min(timer.blocked_autorange(min_run_time=MATRIX_SECONDS).times)
    del matrix, timer
    free_memory(device)  # else the matrix would stay reserved and count in a cell's peaks
    return float(2 * side**3 / seconds)


def complete(ledger: Ledger, footprint: Footprint) -> Ledger:
    """Fills in the ledger's peak, and its activations: the peak minus `ledger.tensor_bytes`."""
    activations = footprint.peak_bytes - (ledger.tensor_bytes or 0)
    return replace(ledger, peak_bytes=footprint.peak_bytes, activations_bytes=activations)


def compute_flops(footprint: Footprint, step_seconds: float | None) -> Flops:
    """An update's FLOPs, the FLOP rate achieved, the device's best rate, and their ratio (MFU)."""
    rate = footprint.flops_per_step / step_seconds if step_seconds else None
    peak = footprint.matmul_flops_per_second
    return Flops(
        flops_per_step=footprint.flops_per_step,
        achieved_flops_per_second=rate,
        matmul_flops_per_second=peak,
        mfu_percent=100 * rate / peak if rate else None,
    )


# Expectations on any machine; each function returns a sentence per unmet expectation


def footprint_faults(trainer: Trainer, footprint: Footprint) -> list[str]:
    """Checks the number of trained parameters, the bytes held, and the memory saved by the method.

    Returns a sentence for each fault.
    """
    ledger = trainer.log.ledger
    assert ledger, "a traced trainer has made two updates"
    total_params = parameter_counts(trainer.model).total_params
    return [
        *wrong_counts(trainer.cell, trainer.model),
        *wrong_bytes(ledger, footprint, trainer.meter.device),
        *wrong_savings(trainer.cell, ledger, total_params),
    ]


def wrong_counts(cell: Cell, model: nn.Module) -> list[str]:
    """Returns a sentence if the number of trained parameters is not the recipe's.

    A new token's row does not count.
    """
    expected = cell.recipe.trainable_params
    count = 0
    for name, p in model.named_parameters():
        if p.requires_grad and TOKEN_ROWS not in name:
            count += p.numel()
    if expected in (None, count):
        return []
    return [f"{count:,} parameters train, the recipe says {expected:,}"]


def wrong_bytes(ledger: Ledger, footprint: Footprint, device: torch.device) -> list[str]:
    """Returns a sentence if the device holds more or fewer bytes than the ledger lists.

    On CUDA, what the allocator and libraries add is allowed for.
    """
    expected = ledger.tensor_bytes or 0
    allowed_error = CUDA_ROOM * expected + CUDA_EXTRA if device.type == "cuda" else 0
    if abs(footprint.live_bytes - expected) <= allowed_error:
        return []
    return [f"the ledger holds {expected:,} bytes, the device {footprint.live_bytes:,}"]


def wrong_savings(cell: Cell, ledger: Ledger, total_params: int) -> list[str]:
    """Returns a sentence for each missing saving.

    Quantized weights must take less memory than unquantized ones, and an adapter's gradients and
    moments less than those of full fine-tuning.
    """
    weights = ledger.weights_bytes or 0
    unpacked = base_type(cell).itemsize * total_params
    training = (ledger.gradients_bytes or 0) + (ledger.optimizer_bytes or 0)
    full = 3 * FP32_BYTES * total_params  # a gradient and two moments
    sentences = []
    if cell.quantization and weights >= WEIGHTS_SHARE * unpacked:
        sentences.append(f"quantized weights take {weights:,} bytes, unquantized ones {unpacked:,}")
    if cell.method.adapts and training >= ADAPTER_SHARE * full:
        fault = f"gradients and optimizer take {training:,} bytes"
        sentences.append(f"{fault}, those of full fine-tuning {full:,}")
    return sentences
