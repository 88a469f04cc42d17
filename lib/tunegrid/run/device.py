"""Decides where a cell runs and in which precision, by what the recipe requests and this machine can do.

Memory, too: what is free, what a cell left, one error for all that runs out of it; and what `pytest -m gpu` objects to.
"""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tunegrid.errors import InputError, first_line
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Quantization
from tunegrid.grid.recipes import Precision
from tunegrid.machine import cpu_name, give_back_memory
from tunegrid.record.parts import DeviceRecord

GIB = 2**30
LOCKS = Path.home() / ".cache" / "tunegrid" / "devices"
LEFT_GIB = 0.125  # libraries' workspaces stay: cuBLAS keeps 32 MiB on an H100
BUSY_GIB = 1.0  # a CUDA context of our own takes about half of that
MEASURED = ("cpu", "cuda")
ATTENTION = "sdpa"  # torch's fused attention
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16"}  # of packed weights, by the precision of training
# How libraries say that memory ran out: torch's allocators on a CPU, the CUDA runtime outside them, cuBLAS's handles.
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Claims:
    """GPUs that this process holds, one lock file each, by hardware id, so that sessions know when they share one.

    Only GPUs in CUDA_VISIBLE_DEVICES count: torch sees no others.
    """

    def __init__(self, folder: Path = LOCKS) -> None:
        """`folder` holds the lock files; it is the same for every checkout of a user."""
        self._folder = folder
        self._locks: dict[int, FileLock] = {}
        self.shared: set[int] = set()

    def take(self, worker: int, requested: int | None = None) -> int:
        """A device for this worker: a free one if there is one. A requested device is shared if somebody holds it."""
        count = torch.cuda.device_count()
        order = [requested] if requested is not None else [(worker + step) % count for step in range(count)]
        order.sort(key=lambda index: index not in self._locks)  # what it holds already comes first
        chosen = next((index for index in order if index in self._locks or self._lock(index)), None)
        if chosen is not None:
            self.shared.discard(chosen)
            return chosen
        self.shared.add(order[0])
        return order[0]

    def release(self) -> None:
        """Let others have what this process holds, and forget what it shared."""
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()
        self.shared.clear()

    def _lock(self, index: int) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / f"{torch.cuda.get_device_properties(index).uuid}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._locks[index] = lock  # held until released, or the process ends
        return True


CLAIMS = Claims()


def contended(device: torch.device, others_gib: float | None) -> bool | None:
    """Whether somebody else used the GPU at the same time; None on a CPU."""
    if device.type != "cuda":
        return None
    return device.index in CLAIMS.shared or (others_gib or 0.0) > BUSY_GIB


def device_record(device: torch.device) -> DeviceRecord:
    """The device's name, the threads of a CPU run, and what affects speed and memory on a GPU."""
    cuda = device.type == "cuda"
    others = used_by_others_gib(device)
    return DeviceRecord(
        type="cuda" if cuda else "cpu",
        name=torch.cuda.get_device_name(device) if cuda else cpu_name(),
        threads=None if cuda else torch.get_num_threads(),
        attention=ATTENTION,
        tf32=False if cuda else None,  # `resolve_device` switches it off
        used_by_others_gib=others,
        contended=contended(device, others),
        instructions=None if cuda else torch.backends.cpu.get_cpu_capability(),
    )


def resolve_device(requested: str | None, worker: int = 0) -> torch.device:
    """The requested device, or else CUDA where there is one; each worker takes a GPU of its own.

    Raises InputError for a device that is not here, and for one that we cannot measure.
    """
    requested = requested or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise InputError(f"invalid --device {requested!r}: expected cpu, cuda or cuda:N") from None
    if device.type not in MEASURED:
        raise InputError(
            f"--device {requested}: time and memory are measured on cpu and cuda only, so {device.type} would get wrong "
            "figures; say cpu, cuda or cuda:N"
        )
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {requested}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "cuda":
        device = torch.device("cuda", CLAIMS.take(worker, device.index))
        torch.cuda.set_device(device)  # bitsandbytes launches on the current one
        torch.set_float32_matmul_precision("highest")  # an fp32 recipe means fp32, not TF32; torch's default, stated
    return device


def device_names(requested: str | None) -> list[str]:
    """What a requested device may mean in this process: the CPU, the GPU of that number, or every GPU that torch sees.

    No GPU is claimed. Where cards differ, `--device cuda:N` names one.
    """
    requested = requested or ("cuda" if torch.cuda.is_available() else "cpu")
    if requested == "cpu":
        return ["cpu", cpu_name()]
    count, index = torch.cuda.device_count(), torch.device(requested).index
    indices = range(count) if index is None else [index for index in (index,) if index < count]
    return ["cuda", *sorted({torch.cuda.get_device_name(index) for index in indices})]


def resolve_precision(cell: Cell, device: torch.device) -> tuple[Precision, str | None]:
    """The recipe's precision, or the nearest one that works here with a sentence that says so.

    A CPU only emulates fp16; some backbones overflow in it on any device; older GPUs have no bf16 units.
    """
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
    """How the cell's base is stored here, and a sentence where it computes in another type than the method declares.

    Without bf16 units it computes in the precision of training.
    """
    requested = cell.quantization
    if requested is None or requested.bnb_4bit_compute_dtype != "bfloat16" or has_bf16_units(device):
        return requested, None
    kind = COMPUTE_TYPES[resolve_precision(cell, device)[0]]
    change = f"the packed base computes in {kind} in place of bfloat16, for which this GPU has no units"
    return replace(requested, bnb_4bit_compute_dtype=kind), change


def replacements(cell: Cell, device: torch.device) -> list[str]:
    """A sentence for each number format that the cell has here in place of another."""
    return [sentence for _, sentence in (resolve_precision(cell, device), resolve_quantization(cell, device)) if sentence]


def used_by_others_gib(device: torch.device) -> float | None:
    """Memory on a GPU that this process did not reserve, its own CUDA context included; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / GIB


def check_idle(device: torch.device, used_gib: float | None) -> None:
    """Raises InputError where others use the device: the cell's memory and speed would not be its own."""
    if used_gib is not None and used_gib > BUSY_GIB:
        raise InputError(
            f"{device} is in use: {used_gib:.1f} GiB of it are taken by others; free it, choose another with --device, "
            "or measure beside them with --allow-busy-gpu, which the record then says"
        )


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more: reference cycles first, then what was freed, here and on a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    give_back_memory()


def check_empty(device: torch.device) -> None:
    """Raises InputError where an earlier cell's tensors are still on the GPU: they would stand in this cell's peaks."""
    left = torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else 0.0
    if left > LEFT_GIB:
        raise InputError(
            f"{device} still holds {left:.1f} GiB of an earlier cell, which would count as this one's; "
            "--isolate=yes runs each cell in a process of its own"
        )


def random_states(device: torch.device) -> dict[str, Tensor]:
    """RNG states, on which dropout depends."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


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
def fitting() -> Iterator[None]:
    """Raises DoesNotFit where memory runs out meanwhile."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise DoesNotFit(first_line(error)) from None
        raise


# Checks of `pytest -m gpu`: they compare figures that were measured twice, and say what disagrees

CLOCKS = 0.05  # the share by which CUDA events and the wall clock may differ over a run of updates
SAME_LOSS = 1e-2  # relative: micro-batches of other sizes round otherwise, in bf16 by up to a percent


def left_behind(before_bytes: int, after_bytes: int) -> list[str]:
    """A cell that is gone leaves no more than libraries' workspaces."""
    left = (after_bytes - before_bytes) / GIB
    return [f"a cell left {left:.2f} GiB on the device"] if left > LEFT_GIB else []


def clocks_differ(event_seconds: float, wall_seconds: float) -> list[str]:
    """Updates timed by CUDA events take as long as by the wall clock."""
    if math.isclose(event_seconds, wall_seconds, rel_tol=CLOCKS):
        return []
    return [f"CUDA events say {event_seconds:.3f} s, the wall clock {wall_seconds:.3f} s"]


def ladder_broken(fallbacks: Sequence[str], micro_batch: int, recipe_batch: int, losses: tuple[float, float]) -> list[str]:
    """Where memory ran out, smaller micro-batches made the same update; `losses` are of the same rows, whole and in pieces."""
    sentences = []
    if micro_batch >= recipe_batch or not any(sentence.startswith("out of memory at update") for sentence in fallbacks):
        sentences.append(f"memory ran out, but the micro-batch is {micro_batch} of {recipe_batch}")
    if not math.isclose(*losses, rel_tol=SAME_LOSS):
        sentences.append(f"the loss is {losses[1]:.4f} in smaller micro-batches, {losses[0]:.4f} in one")
    return sentences


def skips_miscounted(skipped: Sequence[int], halvings: float, updates: int, scheduled: int) -> list[str]:
    """Each update that fp16 lost halved the scale once, is counted once, and did not advance the schedule."""
    sentences = []
    if len(skipped) != halvings:
        sentences.append(f"{len(skipped)} updates are counted as lost, the scale was halved {halvings:g} times")
    if scheduled != updates - len(skipped):
        sentences.append(f"the schedule made {scheduled} steps in {updates} updates, {len(skipped)} of them lost")
    return sentences if halvings else [*sentences, "no update was lost, so nothing was checked"]


def not_smaller(bytes_by_name: Mapping[str, int]) -> list[str]:
    """Each takes more memory than the one before it."""
    pairs = zip(bytes_by_name.items(), list(bytes_by_name.items())[1:], strict=False)
    return [f"{one} takes {a:,} bytes, {other} {b:,}" for (one, a), (other, b) in pairs if a >= b]


def not_shared(own: bool | None, other: bool | None) -> list[str]:
    """Of two processes on one GPU the second one, and only it, knows that it came second."""
    sentences = ["a process does not see that another one holds its GPU"] if other is not True else []
    return sentences + (["a process that came first takes itself for a guest"] if own is not False else [])
