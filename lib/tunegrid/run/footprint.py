"""Measures what a cell costs at its true size: FLOPs, bytes and rates. No checkpoint is needed.

Two updates precede the timed ones and warm up the device: the first counts FLOPs, the second traces bytes.
"""

import math
import time
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tunegrid.codecs.base import Codec, Feature
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import SFT, TOKEN_ROWS, Method
from tunegrid.record.parts import Flops, Ledger
from tunegrid.run.build import base_type, build, load_tokenizer
from tunegrid.run.device import free_memory
from tunegrid.run.evaluate import predict
from tunegrid.run.meter import parameter_counts, tensor_bytes, weight_tensors
from tunegrid.run.progress import Progress
from tunegrid.run.train import Trainer

TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FP32_BYTES = 4
MATRIX = {"cpu": 2048, "cuda": 8192}  # sides of the square matrices whose product is the device's peak
REPEATS = {"cpu": 3, "cuda": 20}
GENERATED_ROWS = {"cpu": 1, "cuda": 64}
CUDA_ROOM = 0.02  # the share that an allocator's rounding may add
WEIGHTS_SHARE = 0.75  # NF4 of T5's encoder, whose embeddings and wo stay in fp32, still saves a third


@dataclass(kw_only=True)
class Footprint:
    """Measurements of the traced updates and of the generation.

    Attributes:
        flops_per_step: of one update, forward and backward, matrix products and attention (torch's FlopCounterMode).
        matmul_flops_per_second: the device's best on large square matrices in the cell's precision.
        live_bytes: held right after the optimizer's step, by the allocator's count (CUDA) or the tensors' (CPU).
        peak_bytes: the most held during that update.
        generated_tokens_per_second: of all rows together; None for a task that generates nothing.
    """

    flops_per_step: int
    matmul_flops_per_second: float
    live_bytes: int
    peak_bytes: int
    generated_tokens_per_second: float | None = None


def synthetic_features(cell: Cell, codec: Codec) -> list[Feature]:
    """Features of full length for every update of the profile."""
    rng = Random(cell.profile.seed)
    recipe = cell.recipe
    count = recipe.max_steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    return [replace(codec.synthetic(rng), example=i) for i in range(count)]


def trace(trainer: Trainer, baseline_bytes: int) -> Footprint:
    """Two updates of the trainer: one counts FLOPs, one traces bytes beyond `baseline_bytes`, held before the model was."""
    group = next(trainer.updates(0))
    with FlopCounterMode(display=False, custom_mapping=uncounted()) as counter:
        trainer.update(group)
    live, peak = _traced_bytes(trainer, next(trainer.updates(0)), baseline_bytes)
    return Footprint(
        flops_per_step=counter.get_total_flops(),
        matmul_flops_per_second=matmul_peak(trainer.meter.device, trainer.log.precision),
        live_bytes=live,
        peak_bytes=peak,
    )


def uncounted() -> dict[Any, Any]:
    """FLOPs of operators that torch's counter leaves out, or counts otherwise on another device.

    Attention stays fused: unfused, it would take memory that training never takes. Its backward pass counts as twice the
    forward one on every device; that a kernel computes the scores once more is its own affair.
    """
    mapping: dict[Any, Any] = {torch.ops.bitsandbytes.gemm_4bit: packed_product_flops}
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu"):
        name = f"_scaled_dot_product_{kernel}"
        mapping[getattr(torch.ops.aten, name)] = attention_flops
        mapping[getattr(torch.ops.aten, f"{name}_backward")] = attention_backward_flops
    return mapping


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of attention: scores of queries and keys, and their product with the values."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of its backward pass: each of the two products has two gradients."""
    return 2 * attention_flops(query, key, value)


def packed_product_flops(a: Sequence[int], packed: Any, shape: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of rows of `a` (..., K) times a 4-bit matrix of `shape` (N, K)."""
    return 2 * math.prod(a) * shape[0]


def _traced_bytes(trainer: Trainer, group: Any, baseline: int) -> tuple[int, int]:
    cuda = trainer.meter.device.type == "cuda"
    states = trainer.optimizer.state.values()
    moments = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    held = [*weight_tensors(trainer.model), *moments]  # between two updates
    tracer: Any = CudaBytes(trainer.meter.device, baseline) if cuda else TensorBytes(held)
    live: list[int] = []
    hook = trainer.optimizer.optimizer.register_step_post_hook(lambda *_: live.append(tracer.live))
    with tracer:
        trainer.update(group)
    hook.remove()
    return live[0], tracer.peak


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors on a CPU, whose allocator cannot be asked: given ones, and all floating ones that operators make.

    Token ids and scalars such as the loss are left out: they belong to the batch, not to the model.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """`tensors` are held already."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {t.untyped_storage().data_ptr() for t in tensors}
        self.live = self.peak = tensor_bytes(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what the operator made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim:
                self._hold(leaf.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        pointer, size = storage.data_ptr(), storage.nbytes()
        if not size or pointer in self._known:
            return
        self._known.add(pointer)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, pointer, size).atexit = False

    def _release(self, pointer: int, size: int) -> None:
        self._known.discard(pointer)
        self.live -= size


class CudaBytes(AbstractContextManager["CudaBytes"]):
    """What torch's allocator holds on a GPU beyond a baseline."""

    def __init__(self, device: torch.device, baseline: int) -> None:
        """Counts on `device`."""
        self._device, self._baseline = device, baseline

    def __enter__(self) -> "CudaBytes":
        """Start a new peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to undo."""

    @property
    def live(self) -> int:
        """Allocated now."""
        return torch.cuda.memory_allocated(self._device) - self._baseline

    @property
    def peak(self) -> int:
        """The most allocated since entered."""
        return torch.cuda.max_memory_allocated(self._device) - self._baseline


def baseline_bytes(device: torch.device) -> int:
    """Bytes that a GPU holds before a model is on it, cuBLAS's workspaces included; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    matrix = torch.ones(256, 256, device=device, requires_grad=True)
    (matrix @ matrix).sum().backward()  # type: ignore[no-untyped-call]
    del matrix
    return torch.cuda.memory_allocated(device)


@cache
def matmul_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of the fastest of several products of two large square matrices, 2 n^3 FLOPs each.

    Of random numbers: a GPU multiplies ones with less power, hence at a higher clock than it holds in training.
    """
    side = MATRIX[device.type]
    generator = torch.Generator(device).manual_seed(0)  # the trainer's own random numbers stay as they are
    matrix = torch.randn(side, side, generator=generator, device=device, dtype=TORCH_TYPES[precision])
    seconds = []
    for _ in range(REPEATS[device.type] + 1):  # the first one warms up
        _wait(device)
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    del matrix
    free_memory(device)  # or it would stay reserved, in the first cell's peaks alone
    return float(2 * side**3 / min(seconds[1:]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def generation_rate(model: nn.Module, codec: Codec, device: torch.device, progress: Progress) -> float | None:
    """Generated tokens a second, by the recipe's search on full-length inputs; None for a codec that generates nothing."""
    if not codec.generates:
        return None
    rng = Random(codec.cell.profile.seed)
    features = [codec.synthetic(rng) for _ in range(GENERATED_ROWS[device.type])]
    if device.type == "cuda":
        predict(model, codec, features, device, progress.stage("warm up"))
    _wait(device)
    began = time.perf_counter()
    outputs, _ = predict(model, codec, features, device, progress.stage("generate"))
    _wait(device)
    return sum(map(len, outputs)) / (time.perf_counter() - began)


def complete(ledger: Ledger, footprint: Footprint) -> Ledger:
    """The ledger with the peak; activations are the peak minus the rest."""
    peak = footprint.peak_bytes
    return replace(ledger, peak_bytes=peak, activations_bytes=peak - kept_bytes(ledger))


def kept_bytes(ledger: Ledger) -> int:
    """What stays between two updates."""
    return sum(size or 0 for size in (ledger.weights_bytes, ledger.gradients_bytes, ledger.optimizer_bytes))


def flops_of(footprint: Footprint, step_seconds: float | None) -> Flops:
    """FLOPs of an update, and how fast they were done beside the device's best."""
    achieved = footprint.flops_per_step / step_seconds if step_seconds else None
    peak = footprint.matmul_flops_per_second
    return Flops(
        flops_per_step=footprint.flops_per_step,
        achieved_flops_per_second=achieved,
        matmul_flops_per_second=peak,
        mfu_percent=100 * achieved / peak if achieved else None,
    )


def unexpected(trainer: Trainer, footprint: Footprint) -> list[str]:
    """A sentence for every expectation that must hold on any machine and does not."""
    ledger = trainer.log.ledger
    assert ledger, "a traced trainer has made two updates"
    return [
        *wrong_counts(trainer.cell, trainer.model),
        *wrong_bytes(ledger, footprint, trainer.meter.device),
        *wrong_savings(trainer.cell, ledger),
    ]


def wrong_counts(cell: Cell, model: nn.Module) -> list[str]:
    """A sentence if the recipe expects another number of trainable parameters; it does not count the row of a new token."""
    expected = cell.recipe.trainable_params
    trained = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and TOKEN_ROWS not in name)
    return [] if expected in (None, trained) else [f"{trained:,} parameters train, the recipe says {expected:,}"]


def wrong_bytes(ledger: Ledger, footprint: Footprint, device: torch.device) -> list[str]:
    """A sentence where the device holds other tensors than the ledger books."""
    booked = kept_bytes(ledger)
    room = CUDA_ROOM * booked if device.type == "cuda" else 0
    if abs(footprint.live_bytes - booked) <= room:
        return []
    return [f"the ledger holds {booked:,} bytes, the device {footprint.live_bytes:,}"]


def wrong_savings(cell: Cell, ledger: Ledger) -> list[str]:
    """A sentence where quantized weights, or an adapter's gradients and moments, are not much smaller than without it."""
    weights, gradients, moments = (size or 0 for size in (ledger.weights_bytes, ledger.gradients_bytes, ledger.optimizer_bytes))
    sentences = []
    if cell.quantization:
        plain = base_type(cell).itemsize * _parameters(cell, replace(cell.method, quantization=None))
        if weights >= WEIGHTS_SHARE * plain:
            sentences.append(f"quantized weights take {weights:,} bytes, unquantized ones {plain:,}")
    if cell.method.adapts:
        full = 3 * FP32_BYTES * _parameters(cell, SFT)  # a gradient and two moments
        if gradients + moments >= cell.method.largest_share * full:
            sentences.append(f"gradients and optimizer take {gradients + moments:,} bytes, those of full fine-tuning {full:,}")
    return sentences


def _parameters(cell: Cell, method: Method) -> int:
    """The number of parameters of the same cell with another method, counted on the meta device."""
    recipe = cell.recipe if method.adapts else replace(cell.recipe, adapter=None)
    twin = replace(cell, method=method, recipe=recipe)
    return parameter_counts(build(twin, load_tokenizer(twin), torch.device("meta"))).total_params
