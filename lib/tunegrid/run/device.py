"""Where a cell runs and in which precision, by what the recipe requests and this machine can do; and what memory is free."""

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
from tunegrid.grid.recipes import Precision
from tunegrid.machine import cpu_name, versions
from tunegrid.record.record import DeviceRecord

GIB = 2**30
LEFT_GIB = 0.125  # libraries' workspaces stay: cuBLAS keeps 32 MiB on an H100
CPU_STEPS = Version("0.50")  # of bitsandbytes
BUSY_GIB = 1.0  # a CUDA context of our own takes about half of that
FUSED, BY_HAND = "sdpa", "eager"  # attention by torch's function, and by products and a softmax
FULL_TILES = 256  # rows of a matrix whose product a library may compute in fewer bits; it leaves small ones alone
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16"}  # of packed weights, by the precision of training
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LIBC = ctypes.CDLL(None) if os.name == "posix" else None
# How libraries say that memory ran out: torch's allocators on a CPU, the CUDA runtime outside them, cuBLAS's handles.
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def device_record(device: torch.device, attention: str) -> DeviceRecord:
    """The device's name, the threads of a CPU run, the cell's attention, and what affects speed and memory on a GPU."""
    cuda = device.type == "cuda"
    others_gib = used_by_others_gib(device) if cuda else None
    return DeviceRecord(
        type="cuda" if cuda else "cpu",
        name=torch.cuda.get_device_name(device) if cuda else cpu_name(),
        threads=None if cuda else torch.get_num_threads(),
        attention=attention,
        tf32=not keeps_digits(device) if cuda else None,  # `resolve_device` switches it off
        used_by_others_gib=others_gib,
        contended=None if others_gib is None else others_gib > BUSY_GIB,
        instructions=None if cuda else torch.backends.cpu.get_cpu_capability(),
    )


def library_lack(cell: Cell, device: torch.device) -> str:
    """What an installed library cannot do for the cell on this device, as a sentence; empty if there is nothing."""
    installed = versions()["bitsandbytes"]
    if device.type == "cpu" and cell.optimizer is adamw_bnb_8bit and installed and Version(installed) < CPU_STEPS:
        return f"bitsandbytes {installed} has 8-bit optimizers for GPUs alone; {CPU_STEPS} has them for CPUs, too"
    return ""


def keeps_digits(device: torch.device) -> bool:
    """Whether a product of fp32 matrices keeps the last of 24 bits; TF32 has 11 of them, bf16 8."""
    matrix = torch.full((FULL_TILES, FULL_TILES), 1 + torch.finfo(torch.float32).eps, device=device)
    product = matrix @ torch.eye(FULL_TILES, device=device)
    return bool(torch.equal(product, matrix))


def used_by_others_gib(device: torch.device) -> float:
    """Memory on a GPU that this process did not reserve, its own CUDA context included."""
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / GIB


def check_free(device: torch.device, *, allow_busy: bool = False) -> None:
    """Raises InputError if others use a GPU, or an earlier cell's tensors are on it: figures would not be the cell's own."""
    if device.type != "cuda":
        return
    if not allow_busy and (used_gib := used_by_others_gib(device)) > BUSY_GIB:
        raise InputError(
            f"{device} is in use: {used_gib:.1f} GiB of it are taken by others; free it, choose another with --device, "
            "or accept them with --allow-busy-gpu (the record says so)"
        )
    if (held_gib := torch.cuda.memory_allocated(device) / GIB) > LEFT_GIB:
        raise InputError(f"{device} still holds {held_gib:.1f} GiB of an earlier cell; --engine=process runs each by itself")


def resolve_device(requested: str | None, worker: int = 0) -> torch.device:
    """The requested cpu, cuda or cuda:N, or else CUDA; workers take GPUs in turn. Raises InputError for one not here."""
    requested, seen = requested or ("cuda" if torch.cuda.is_available() else "cpu"), torch.cuda.device_count()
    device = torch.device(requested)
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= seen:
            raise InputError(f"--device {requested}: torch {torch.__version__} sees {seen} CUDA devices here")
        device = torch.device("cuda", worker % seen if device.index is None else device.index)
        torch.cuda.set_device(device)  # bitsandbytes launches on the current one
        torch.set_float32_matmul_precision("highest")  # an fp32 recipe means fp32, not TF32; torch's default, stated
    return device


def device_names(requested: str | None) -> list[str]:
    """What a requested device may mean in this process: the CPU, the GPU of that number, or every GPU."""
    requested = requested or ("cuda" if torch.cuda.is_available() else "cpu")
    if requested == "cpu":
        return ["cpu", cpu_name()]
    index = torch.device(requested).index
    indices = [one for one in range(torch.cuda.device_count()) if index in (None, one)]
    return ["cuda", *sorted({torch.cuda.get_device_name(one) for one in indices})]


def resolve_precision(cell: Cell, device: torch.device) -> tuple[Precision, str | None]:
    """The recipe's precision, or the nearest one that works here with a sentence that says so."""
    requested = cell.recipe.precision
    if requested == "fp16" and device.type == "cpu" and not cell.backbone.overflows_fp16:
        return "bf16", "bf16 in place of fp16, which a CPU only emulates"
    overflow = f"in which {cell.backbone.name} overflows" if requested == "fp16" and cell.backbone.overflows_fp16 else ""
    if (requested == "bf16" or overflow) and not has_bf16_units(device):
        cause = f"fp16, {overflow}, and of bf16" if overflow else "bf16"
        return "fp32", f"fp32 in place of {cause}, for which this GPU has no units"
    return ("bf16", f"bf16 in place of fp16, {overflow}") if overflow else (requested, None)


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 is fast and complete here. GPUs before Ampere (V100, T4, RTX 20) only emulate it; a CPU does it right."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(precision: str, device: torch.device) -> Any:
    """Forward passes in a precision: a context that does nothing for fp32."""
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def resolve_quantization(cell: Cell, device: torch.device) -> tuple[Quantization | None, str | None]:
    """How the base is stored here; without bf16 units it computes in the precision of training, and a sentence says so."""
    requested = cell.quantization
    if requested is None or requested.bnb_4bit_compute_dtype != "bfloat16" or has_bf16_units(device):
        return requested, None
    kind = COMPUTE_TYPES[resolve_precision(cell, device)[0]]
    change = f"the packed base computes in {kind} in place of bfloat16, for which this GPU has no units"
    return replace(requested, bnb_4bit_compute_dtype=kind), change


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more: reference cycles first, then what was freed, here and on a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    give_back_memory()


def random_states(device: torch.device) -> dict[str, Tensor]:
    """RNG states, on which dropout depends."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    """Set the RNGs to these states."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


class DoesNotFit(Exception):
    """Memory ran out."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


@contextmanager
def check_memory() -> Iterator[None]:
    """Raises DoesNotFit if memory runs out meanwhile."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise DoesNotFit(first_line(error)) from None
        raise


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees until `give_back_memory`, if glibc manages it; nothing undoes that.

    By default glibc returns large blocks at once, and the kernel zeroes them again: a large part of a CPU's time in training.
    """
    if mallopt := getattr(LIBC, "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Return freed memory to the system, if glibc manages it, so that a cell's resident memory is its own."""
    if trim := getattr(LIBC, "malloc_trim", None):
        trim(0)
