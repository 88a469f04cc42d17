"""This machine, asked without torch: its processors, threads, memory and GPUs, and files on its disk."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tunegrid.errors import InputError

THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")  # torch's, and those of tokenizers
SHARED_OUT = "TUNEGRID_SHARED_OUT"  # set where OMP_NUM_THREADS is not the user's, so that a process heeds its share alone
CGROUPS = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LIBC = ctypes.CDLL(None) if os.name == "posix" else None
# Variables that choose which instructions of a CPU torch's kernels, oneDNN and MKL use: other ones round otherwise.
INSTRUCTIONS = (
    *("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
)


def cpu_name() -> str:
    """The CPU's model name where Linux tells it, its architecture elsewhere; with AMX, and with `INSTRUCTIONS` that are set.

    Virtual machines give all Xeons one name, and only those with units for bf16 (AMX) multiply bf16 faster than fp32.
    """
    name = cpu_field("model name") or platform.machine()
    units = " with AMX" if "amx_bf16" in cpu_field("flags").split() else ""
    chosen = [f"{variable}={os.environ[variable]}" for variable in INSTRUCTIONS if variable in os.environ]
    return ", ".join([f"{name}{units}", *chosen])


def instruction_sets() -> list[str]:
    """Those of the CPU by which torch, oneDNN and bitsandbytes choose their kernels; empty where Linux does not tell."""
    return sorted(flag for flag in cpu_field("flags").split() if flag.startswith(("avx", "amx", "fma")))


def cpu_field(name: str) -> str:
    """What Linux tells of the first processor, as its "flags"; empty where it does not."""
    return next((line.split(":", 1)[1].strip() for line in lines_of(Path("/proc/cpuinfo")) if line.startswith(name)), "")


def usable_cores() -> int:
    """Cores that this process may use: as many as a scheduler gave it (TUNEGRID_CORES), or as the system tells; else all.

    A quota of processor time counts as cores, rounded down: more threads than that would wait for each other.
    """
    if given := os.environ.get("TUNEGRID_CORES"):
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *cgroup_quotas()])))


def cgroup_quotas(root: Path = CGROUPS, memberships: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """Seconds of processor time in a second, as each control group of this process limits them; a container may be one.

    Of version 2, mounted at `root`; Linux lists the groups of this process in `memberships`.
    """
    for line in lines_of(memberships):
        group = root / line.removeprefix("0::/")  # those of version 1 have other numbers
        if not line.startswith("0::/"):
            continue
        for folder in (group, *group.parents):
            quota, _, period = " ".join(lines_of(folder / "cpu.max")).partition(" ")
            if quota.isdigit():  # otherwise "max"
                yield int(quota) / int(period)


def lines_of(path: Path) -> list[str]:
    """Of a file that Linux offers; none where it does not."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def worker() -> tuple[int, int]:
    """This process's number among pytest's workers, and how many there are; 0 of 1 without workers."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return int(name.removeprefix("gw")), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def thread_share(requested: int | None, ranks: int = 1) -> int:
    """Threads of this process: as requested, as the user gave them, or its share of the cores among workers and their ranks."""
    number = os.environ.get(THREADS[0], "").partition(",")[0].strip()
    users = int(number) if number.isdecimal() and SHARED_OUT not in os.environ else 0
    return requested or users or max(1, usable_cores() // (worker()[1] * ranks))


def announce_threads(count: int) -> None:
    """Tell torch and the tokenizers how many threads this process has; they listen once."""
    os.environ.update(shared_out(os.environ))
    for name in THREADS:
        os.environ.setdefault(name, str(count))


def shared_out(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of processes that heed their share of the cores unless the user gave threads, whatever torchrun gives."""
    return dict(environment) | ({} if THREADS[0] in environment else {SHARED_OUT: "yes"})


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees until `give_back_memory`; return whether glibc manages it.

    By default glibc returns large blocks at once, and the kernel zeroes them again for the next update: which is
    a large part of the time of training on a CPU. Afterwards nothing brings the default back.
    """
    if mallopt := getattr(LIBC, "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
    return mallopt is not None


def give_back_memory() -> None:
    """Return freed memory to the system, where glibc manages it, so that a cell's resident memory is its own."""
    if trim := getattr(LIBC, "malloc_trim", None):
        trim(0)


def hides_gpus() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU from this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each GPU; empty where there is none."""
    fields = ("name", "memory.total", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, encoding="utf-8").stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=True)) for line in table.splitlines()]


def visible_gpus() -> int:
    """How many GPUs torch will see: those that CUDA_VISIBLE_DEVICES leaves."""
    present, visible = len(gpus()), os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, sum(name.strip() not in ("", "-1") for name in visible.split(",")))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end, when the disk has it; without an end nothing changes.

    Raises:
        OSError: where the disk has no room or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same; never the path itself
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write what a command was asked for; raises InputError where the place cannot be written."""
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another place") from None
