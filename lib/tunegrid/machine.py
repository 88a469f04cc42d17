"""This machine, asked without torch: its processors, and what is installed on it."""

import ctypes
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")  # torch's, and those of tokenizers
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "evaluate", "tokenizers"),
    *("numpy", "scipy", "rouge_score", "nltk"),  # scores and quantiles
)


def cpu_name() -> str:
    """The CPU's model name where Linux tells it, its architecture elsewhere, and whether it has units for bf16 (AMX).

    Virtual machines give all Xeons one name, and only those with AMX multiply bf16 faster than fp32.
    """
    name = cpu_field("model name") or platform.machine()
    return f"{name} with AMX" if "amx_bf16" in cpu_field("flags").split() else name


def cpu_field(name: str) -> str:
    """What Linux tells of the first processor, as its "flags"; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def usable_cores() -> int:
    """Cores that this process may use: as many as a scheduler gave it (TUNEGRID_CORES), or as the system tells; else all."""
    if given := os.environ.get("TUNEGRID_CORES"):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker() -> tuple[int, int]:
    """This process's number among pytest's workers, and how many there are; 0 of 1 without workers."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return int(name.removeprefix("gw")), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def thread_share(requested: int | None, ranks: int = 1) -> int:
    """Threads of this process: as requested, or its share of the cores, where so many ranks run one cell."""
    return requested or max(1, usable_cores() // (worker()[1] * ranks))


def announce_threads(count: int) -> None:
    """Tell torch and the tokenizers how many threads this process has; they listen once."""
    for name in THREADS:
        os.environ.setdefault(name, str(count))


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees until `give_back_memory`; return whether glibc manages it.

    By default glibc returns large blocks at once, and the kernel zeroes them again for the next update: which is
    a large part of the time of training on a CPU. Afterwards nothing brings the default back.
    """
    if mallopt := getattr(_libc(), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
    return mallopt is not None


def keeps_freed_memory() -> bool:
    """Whether this process keeps the memory that it frees."""
    return keep_freed_memory.cache_info().currsize > 0 and keep_freed_memory()


def give_back_memory() -> None:
    """Return freed memory to the system, where glibc manages it, so that a cell's resident memory is its own."""
    if trim := getattr(_libc(), "malloc_trim", None):
        trim(0)


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if os.name == "posix" else None


def hides_gpus() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU from this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each GPU; empty where there is none."""
    fields = ("name", "memory.total", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=True)) for line in table.splitlines()]


def visible_gpus() -> int:
    """How many GPUs torch will see: those that CUDA_VISIBLE_DEVICES leaves."""
    present, visible = len(gpus()), os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, sum(name.strip() not in ("", "-1") for name in visible.split(",")))


def versions() -> dict[str, str | None]:
    """Python's and the libraries' versions; None for one that is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


@cache
def _version(package: str) -> str | None:
    """Read once: every record names all of them."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
