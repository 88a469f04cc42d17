"""Where a cell runs and in which precision. In: a profile's wish and a recipe's. Out: what this machine can do."""

import torch

from lib.errors import InputError
from lib.grid.cells import Cell

GIB = 2**30
BUSY_GIB = 1.0  # a CUDA context of our own takes about half of that


def resolve_device(wish: str | None) -> torch.device:
    """The wished device, or CUDA where there is one; raises InputError for one that is not here."""
    wish = wish or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise InputError(f"--device {wish!r} is no device; say cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {wish}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # bitsandbytes launches on the current one
        torch.backends.cuda.matmul.allow_tf32 = False  # an fp32 recipe means fp32; torch's default, stated
    return device


def resolve_precision(cell: Cell, device: torch.device) -> tuple[str, str | None]:
    """The recipe's precision or the nearest that holds here, and a sentence where the two differ.

    On a CPU fp16 arithmetic is emulated; some backbones overflow in it on any device; older GPUs have no bf16 units.
    """
    wish = cell.recipe.precision
    if wish == "fp16" and cell.backbone.overflows_fp16:
        return "bf16", f"bf16 in place of fp16, in which {cell.backbone.name} overflows"
    if wish == "fp16" and device.type == "cpu":
        return "bf16", "bf16 in place of fp16, which a CPU only emulates"
    if wish == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp32", "fp32 in place of bf16, for which this GPU has no units"
    return wish, None


def used_by_others_gib(device: torch.device) -> float | None:
    """Memory on a GPU that this process did not reserve, its own CUDA context included; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / GIB


def check_idle(device: torch.device, used_gib: float | None) -> None:
    """Raises InputError where others hold memory on the device: neither room nor speed would be the cell's own."""
    if used_gib is not None and used_gib > BUSY_GIB:
        raise InputError(
            f"{device} is in use: {used_gib:.1f} GiB of it are taken by others; free it, choose another with --device, "
            "or measure beside them with --allow-busy-gpu, which the record then says"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
