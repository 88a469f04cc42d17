"""Where a cell runs and in which precision. In: the wishes of a profile and a recipe. Out: what this machine can do."""

from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lib.errors import InputError
from lib.grid.cells import Cell
from lib.machine import cpu_name

GIB = 2**30
LOCKS = Path.home() / ".cache" / "tunegrid" / "devices"
BUSY_GIB = 1.0  # a CUDA context of our own takes about half of that
MEASURED = ("cpu", "cuda")


class Claims:
    """GPUs that this process holds, one lock file each, by hardware id, so that sessions know when they share one.

    Only GPUs in CUDA_VISIBLE_DEVICES count: torch sees no others.
    """

    def __init__(self, folder: Path = LOCKS) -> None:
        """`folder` holds the lock files; it is the same for every checkout of a user."""
        self._folder = folder
        self._locks: dict[int, FileLock] = {}
        self.shared: set[int] = set()

    def take(self, worker: int, wish: int | None = None) -> int:
        """A device for this worker: a free one if there is one. A wished device is shared if somebody holds it."""
        count = torch.cuda.device_count()
        order = [wish] if wish is not None else [(worker + step) % count for step in range(count)]
        chosen = next((index for index in order if index in self._locks or self._lock(index)), None)
        if chosen is not None:
            self.shared.discard(chosen)
            return chosen
        self.shared.add(order[0])
        return order[0]

    def _lock(self, index: int) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / f"{torch.cuda.get_device_properties(index).uuid}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._locks[index] = lock  # held until the process ends
        return True


CLAIMS = Claims()


def contended(device: torch.device, others_gib: float | None) -> bool | None:
    """Whether somebody else used the GPU at the same time; None on a CPU."""
    if device.type != "cuda":
        return None
    return device.index in CLAIMS.shared or (others_gib or 0.0) > BUSY_GIB


def resolve_device(wish: str | None, worker: int = 0) -> torch.device:
    """The wished device, or else CUDA where there is one; each worker takes a GPU of its own.

    Raises InputError for a device that is not here, and for one that we cannot measure.
    """
    wish = wish or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise InputError(f"--device {wish!r} is no device; say cpu, cuda or cuda:N") from None
    if device.type not in MEASURED:
        raise InputError(
            f"--device {wish}: time and memory are measured on cpu and cuda only, so {device.type} would get wrong figures; "
            "say cpu, cuda or cuda:N"
        )
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {wish}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "cuda":
        device = torch.device("cuda", CLAIMS.take(worker, device.index))
        torch.cuda.set_device(device)  # bitsandbytes launches on the current one
        torch.set_float32_matmul_precision("highest")  # an fp32 recipe means fp32, not TF32; torch's default, stated
    return device


def device_names(wish: str | None) -> list[str]:
    """What a wish may mean in this process: the CPU, the GPU of that number, or every GPU that torch sees.

    No GPU is claimed. Where cards differ, `--device cuda:N` names one.
    """
    wish = wish or ("cuda" if torch.cuda.is_available() else "cpu")
    if wish == "cpu":
        return ["cpu", cpu_name()]
    count, index = torch.cuda.device_count(), torch.device(wish).index
    places = range(count) if index is None else [place for place in (index,) if place < count]
    return ["cuda", *sorted({torch.cuda.get_device_name(place) for place in places})]


def resolve_precision(cell: Cell, device: torch.device) -> tuple[str, str | None]:
    """The recipe's precision, or the nearest one that works here with a sentence that says so.

    A CPU only emulates fp16; some backbones overflow in it on any device; older GPUs have no bf16 units.
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
    """Raises InputError where others use the device: the cell's memory and speed would not be its own."""
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
