"""Resolves a cell's device and precision for this machine; checks and frees memory."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from tunegrid.errors import InputError, first_line
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Quantization, adamw_bnb_8bit
from tunegrid.grid.recipes import Precision, cpu_precision
from tunegrid.machine import GIB, cpu_name, versions
from tunegrid.record.record import DeviceRecord

LEFT_GIB = 0.125  # may stay allocated: cuBLAS's workspace takes 32 MiB on an H100
CPU_STEPS = Version("0.50")  # the first bitsandbytes with 8-bit optimizers for CPUs
BUSY_GIB = 1.0  # our own CUDA context takes about half of this
FUSED = "sdpa"  # attention computed by torch's scaled_dot_product_attention
BY_HAND = "eager"  # attention computed with products and a softmax
# Matrix rows; at this size, unlike at smaller sizes, a library may multiply in fewer bits.
FULL_TILES = 256
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Compute types of packed weights, by the precision of training.
COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16"}
M_TRIM_THRESHOLD = -1  # from glibc's malloc.h
M_MMAP_MAX = -4  # likewise
LIBC = ctypes.CDLL(None) if os.name == "posix" else None
# Messages of out-of-memory errors from torch's allocators, the CUDA runtime and cuBLAS.
NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def device_record(device: torch.device, attention: str) -> DeviceRecord:
    """The record of the device: its name, the attention used, and facts about speed and memory."""
    if device.type != "cuda":
        return DeviceRecord(
            type="cpu",
            name=cpu_name(),
            threads=torch.get_num_threads(),
            attention=attention,
            tf32=None,
            used_by_others_gib=None,
            contended=None,
            instructions=torch.backends.cpu.get_cpu_capability(),
        )
    others_gib = used_by_others_gib(device)
    return DeviceRecord(
        type="cuda",
        name=torch.cuda.get_device_name(device),
        threads=None,
        attention=attention,
        tf32=not keeps_digits(device),  # `resolve_device` switches TF32 off
        used_by_others_gib=others_gib,
        contended=others_gib > BUSY_GIB,
        instructions=None,
    )


def library_lack(cell: Cell, device: torch.device) -> str:
    """A message if the installed bitsandbytes cannot run the cell's optimizer on a CPU, else ""."""
    installed = versions()["bitsandbytes"]
    if device.type != "cpu" or cell.optimizer is not adamw_bnb_8bit or not installed:
        return ""
    if Version(installed) >= CPU_STEPS:
        return ""
    fault = f"bitsandbytes {installed} has 8-bit optimizers for GPUs alone"
    return f"{fault}; {CPU_STEPS} has them for CPUs, too"


def keeps_digits(device: torch.device) -> bool:
    """Checks whether products of fp32 matrices keep 24 significant bits; TF32 keeps 11, bf16 8."""
    matrix = torch.full((FULL_TILES, FULL_TILES), 1 + torch.finfo(torch.float32).eps, device=device)
    product = matrix @ torch.eye(FULL_TILES, device=device)
    return bool(torch.equal(product, matrix))


def used_by_others_gib(device: torch.device) -> float:
    """GiB of GPU memory in use that torch has not reserved in this process.

    This includes the process's own CUDA context.
    """
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / GIB


def check_free(device: torch.device, *, allow_busy: bool = False) -> None:
    """Raises InputError if an earlier cell or another process holds a lot of GPU memory.

    With `allow_busy`, other processes may hold it.
    """
    if device.type != "cuda":
        return
    used_gib = 0.0 if allow_busy else used_by_others_gib(device)
    if used_gib > BUSY_GIB:
        raise InputError(
            f"{device} is in use: {used_gib:.1f} GiB of it are taken by others; "
            "free it, choose another with --device, "
            "or accept them with --allow-busy-gpu (the record says so)"
        )
    held_gib = torch.cuda.memory_allocated(device) / GIB
    if held_gib > LEFT_GIB:
        fault = f"{device} still holds {held_gib:.1f} GiB of an earlier cell"
        raise InputError(f"{fault}; --engine=process runs each by itself")


def resolve_device(requested: str | None, worker: int = 0) -> torch.device:
    """Resolves cpu, cuda, cuda:N or the default to a device; workers take GPUs in turn.

    Makes a GPU the current device, and disables TF32. Raises InputError if the GPU does not exist.
    """
    requested = requested or default_device()
    device = torch.device(requested)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or (device.index or 0) >= count:
        version = torch.__version__
        raise InputError(f"--device {requested}: torch {version} sees {count} CUDA devices here")
    if device.index is None:
        device = torch.device("cuda", worker % count)
    torch.cuda.set_device(device)  # bitsandbytes launches on the current device
    # An fp32 recipe means fp32, not TF32. This states torch's default.
    torch.set_float32_matmul_precision("highest")
    return device


def default_device() -> str:
    """CUDA if it is available, otherwise the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_names(requested: str | None) -> list[str]:
    """The device type, followed by the names of all devices that `requested` may refer to."""
    requested = requested or default_device()
    if requested == "cpu":
        return ["cpu", cpu_name()]
    index = torch.device(requested).index
    indices = range(torch.cuda.device_count())
    names = {torch.cuda.get_device_name(i) for i in indices if index in (None, i)}
    return ["cuda", *sorted(names)]


def resolve_precision(cell: Cell, device: torch.device) -> tuple[Precision, str | None]:
    """The precision to use here, and a sentence if it differs from the recipe's precision."""
    requested = cell.recipe.precision
    no_units = "for which this GPU has no units"
    if requested == "bf16" and not has_bf16_units(device):
        return "fp32", f"fp32 in place of bf16, {no_units}"
    if requested != "fp16":
        return requested, None
    if cell.backbone.overflows_fp16:
        fp16 = f"fp16, in which {cell.backbone.name} overflows"
        if has_bf16_units(device):
            return "bf16", f"bf16 in place of {fp16}"
        return "fp32", f"fp32 in place of {fp16}, and of bf16, {no_units}"
    if device.type == "cpu":
        substitute = cpu_precision(requested)
        return substitute, f"{substitute} in place of fp16, which a CPU only emulates"
    return requested, None


def has_bf16_units(device: torch.device) -> bool:
    """Checks whether a GPU computes in bf16 without emulation; always true on CPUs.

    GPUs before Ampere (V100, T4, RTX 20) only emulate bf16.
    """
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(precision: str, device: torch.device) -> Any:
    """The autocast context for forward passes in a precision; it does nothing for fp32."""
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def resolve_quantization(
    cell: Cell,
    device: torch.device,
) -> tuple[Quantization | None, str | None]:
    """The base's quantization, and a sentence if lack of bf16 units changes its compute type."""
    requested = cell.quantization
    if requested is None or requested.bnb_4bit_compute_dtype != "bfloat16":
        return requested, None
    if has_bf16_units(device):
        return requested, None
    kind = COMPUTE_TYPES[resolve_precision(cell, device)[0]]
    change = f"the packed base computes in {kind} in place of bfloat16"
    quantization = replace(requested, bnb_4bit_compute_dtype=kind)
    return quantization, f"{change}, for which this GPU has no units"


def free_memory(device: torch.device) -> None:
    """Collects garbage and releases freed memory, on the host and on a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    give_back_memory()


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The RNG states that dropout depends on."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    """Restores RNG states from `random_states`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


class DoesNotFit(Exception):
    """Raised when memory runs out."""


def out_of_memory(error: BaseException) -> bool:
    """Checks whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


@contextmanager
def check_memory() -> Iterator[None]:
    """Raises DoesNotFit if memory runs out within the context."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise DoesNotFit(first_line(error)) from None
        raise


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for reuse; `give_back_memory` still returns it.

    By default, glibc returns large blocks immediately and the kernel zeroes them again, which takes
    much of the CPU time in training.
    """
    mallopt = getattr(LIBC, "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Makes glibc return freed memory, which would otherwise count as the next cell's memory."""
    trim = getattr(LIBC, "malloc_trim", None)
    if trim:
        trim(0)
