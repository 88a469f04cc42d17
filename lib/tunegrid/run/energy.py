"""Reads the machine's counters of energy: NVML's of a GPU, RAPL's of its processors. What no counter tells is None.

A counter is of a card or a processor, and not of a process: it counts idle power, and whatever else runs there at the time. So
one that several cells share tells nothing of any of them, and is not read. Nothing is modelled from time or utilization.
"""

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunegrid.record.parts import Memory

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"  # comes with NVIDIA's driver
WATTS = 1000.0  # more than any processor takes; at so many a counter needs at least this long to come round
LEFT_OUT = "; the GPU's is left out, since others used it"
Joules = float | None


@dataclass(kw_only=True)
class Counter:
    """Joules of one card or processor.

    Attributes:
        read: the count now; None where it cannot be read.
        joules_a_count: what one count stands for.
        largest: the count after which it starts again from 0; None where that takes years.
        now: seconds on a clock.
    """

    read: Callable[[], int | None]
    joules_a_count: float
    largest: int | None = None
    now: Callable[[], float] = time.monotonic
    _count: int | None = field(default=None, init=False)
    _read_at: float = field(default=0.0, init=False)
    _joules: Joules = field(default=None, init=False)

    def begin(self) -> None:
        """Count from here."""
        self._count, self._read_at, self._joules = self.read(), self.now(), 0.0

    def look(self) -> Joules:
        """Joules since `begin`; None where it could not be read, or may have started again more than once between two looks."""
        before, read_at = self._count, self._read_at
        self._count, self._read_at = self.read(), self.now()
        step = self._step(before, self._count)
        if self._joules is None or step is None or self._read_at - read_at > self._longest():
            self._joules = None
        else:
            self._joules += self.joules_a_count * step
        return self._joules

    def _step(self, before: int | None, count: int | None) -> int | None:
        """Counts between two looks."""
        if before is None or count is None or (count < before and self.largest is None):
            return None
        return count - before if count >= before else count - before + (self.largest or 0)

    def _longest(self) -> float:
        """Seconds in which it cannot start again twice."""
        return math.inf if self.largest is None else self.joules_a_count * self.largest / WATTS


@dataclass(kw_only=True)
class Energy:
    """The counters that a cell has for itself.

    Attributes:
        gpu: of its card; None where there is none.
        cpu: one for each processor; empty where there are none.
        source: what is counted, or why it is not, for the record.
    """

    gpu: Counter | None = None
    cpu: Sequence[Counter] = ()
    source: str = "no counters"

    def begin(self) -> None:
        """Count from here."""
        for counter in [*self.cpu, *([self.gpu] if self.gpu else [])]:
            counter.begin()

    def cpu_joules(self) -> Joules:
        """Of all processors together, since `begin`. It must be asked often, so that none starts again twice unseen."""
        each = [counter.look() for counter in self.cpu]
        return None if not each or None in each else sum(joules or 0.0 for joules in each)

    def gpu_joules(self) -> Joules:
        """Of the card, since `begin`."""
        return self.gpu.look() if self.gpu else None


def energy_of(
    device: "torch.device", *, shared: str = "", ranks: int = 1, powercap: Path = POWERCAP, nvml: Any = None
) -> Energy:
    """The counters of a cell on `device`.

    Args:
        device: where it runs.
        shared: who else of this suite uses the machine's processors at the same time; empty: nobody.
        ranks: processes that share the cell, a GPU each.
        powercap: where Linux has RAPL's counters.
        nvml: NVIDIA's library; None loads it.
    """
    cpu, why_not = ([], shared) if shared else rapl(powercap)
    source = f"CPU: {why_not or f'RAPL, {len(cpu)} package' + 's' * (len(cpu) > 1)}"
    if device.type != "cuda":
        return Energy(cpu=cpu, source=source)
    gpu, why_not = (None, f"{ranks} GPUs share the cell") if ranks > 1 else gpu_counter(device, nvml)
    return Energy(gpu=gpu, cpu=cpu, source=f"GPU: {why_not or 'NVML'}; {source}")


# RAPL: one folder for each processor, with its parts below it, which it counts already (Linux, Documentation/power/powercap)


def rapl(root: Path) -> tuple[list[Counter], str]:
    """A counter for each processor, or why there is none."""
    folders = [folder for folder in sorted(root.glob("intel-rapl:*")) if _text(folder / "name").startswith("package-")]
    if not folders:
        return [], "no RAPL counters"
    largest = [_number(folder / "max_energy_range_uj") for folder in folders]
    if None in [*largest, *(_number(folder / "energy_uj") for folder in folders)]:
        return [], "RAPL counters cannot be read"  # since Linux 5.10 by root alone
    return [_rapl_counter(folder / "energy_uj", most) for folder, most in zip(folders, largest, strict=True)], ""


def _rapl_counter(path: Path, largest: int | None) -> Counter:
    return Counter(read=lambda: _number(path), joules_a_count=1e-6, largest=largest)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


# NVML: millijoules since the driver was loaded, of Volta and later


def gpu_counter(device: "torch.device", nvml: Any = None) -> tuple[Counter | None, str]:
    """The counter of a GPU, or why there is none."""
    try:
        library = nvml or ctypes.CDLL(NVML)
        handle = ctypes.c_void_p()
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid_of(device), ctypes.byref(handle))
    except (OSError, AttributeError):  # no library, or one without these calls
        return None, "no NVML"
    if failed or _millijoules(library, handle) is None:
        return None, "NVML has no counter for it"
    return Counter(read=lambda: _millijoules(library, handle), joules_a_count=1e-3), ""


def _millijoules(library: Any, handle: Any) -> int | None:
    count = ctypes.c_ulonglong()
    failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(count))
    return None if failed else count.value


def uuid_of(device: "torch.device") -> bytes:
    """The name by which NVML knows a GPU, whichever CUDA_VISIBLE_DEVICES leaves."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()


def without_the_gpus(memory: Memory) -> Memory:
    """The same without a GPU's joules, which are not the cell's alone where others used it."""
    return replace(memory, phases={name: replace(phase, gpu_energy_joules=None) for name, phase in memory.phases.items()})
