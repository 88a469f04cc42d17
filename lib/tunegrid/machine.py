"""Gathers facts about this machine, without importing torch, and writes files safely.

The facts are about the CPU, cores, GPUs and libraries.
"""

import base64
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from tunegrid.errors import InputError

GIB = 2**30  # bytes
THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")  # read by torch and by tokenizers
# Set when the user did not set OMP_NUM_THREADS, so that a process uses only its share
SHARE_VARIABLE = "TUNEGRID_SHARED_OUT"
# The quota in the container's own control group: microseconds per period, or "max"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Variables that choose the CPU instructions that torch's kernels, oneDNN and MKL use. Other
# instructions round differently.
INSTRUCTIONS = (
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
)
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "evaluate",
    "tokenizers",
    # These compute scores and quantiles
    "numpy",
    "scipy",
    "rouge_score",
    "nltk",
)
LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.part$")  # a folder with an unfinished file
CODE_FILE = re.compile(r"\.(py|so|pyd|dll|dylib)(\.\d+)*$")  # files that Python and the loader read


def cpu_name() -> str:
    """The CPU's model name on Linux, else its architecture.

    Adds "with AMX" if the CPU has it, since no model name reveals it, and the `INSTRUCTIONS`
    variables that are set.
    """
    name = cpu_field("model name") or platform.machine()
    units = " with AMX" if "amx_bf16" in cpu_field("flags").split() else ""
    settings = [
        f"{variable}={os.environ[variable]}" for variable in INSTRUCTIONS if variable in os.environ
    ]
    return ", ".join([f"{name}{units}", *settings])


def cpu_field(name: str) -> str:
    """The value of a field, such as "flags", that Linux reports for the first CPU; else empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def usable_cores() -> int:
    """The number of cores that this process may use.

    It is TUNEGRID_CORES if set, for example by a scheduler, else what the system and the container
    allow. Raises InputError if TUNEGRID_CORES is not a positive integer.
    """
    if number := os.environ.get("TUNEGRID_CORES"):
        if not number.isdecimal() or int(number) < 1:
            raise InputError(f"TUNEGRID_CORES is {number!r}: expected a number of cores, as 4")
        return int(number)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # A container's quota of processor time counts as cores, rounded down, because any more threads
    # would wait for each other.
    quota, _, period = (
        CPU_QUOTA.read_text(encoding="utf-8") if CPU_QUOTA.is_file() else ""
    ).partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() else cores


def worker() -> tuple[int, int]:
    """This process's index among pytest's workers, and their number; (0, 1) without workers."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return int(name.removeprefix("gw")), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def thread_share(requested: int | None, ranks: int = 1) -> int:
    """The number of threads for this process.

    It is `requested` if given, else the user's OMP_NUM_THREADS, else this process's share of the
    cores among all workers and their ranks.
    """
    number = os.environ.get(THREADS[0], "").partition(",")[0].strip()
    users = int(number) if number.isdecimal() and SHARE_VARIABLE not in os.environ else 0
    return requested or users or max(1, usable_cores() // (worker()[1] * ranks))


def announce_threads(count: int) -> None:
    """Tell torch and the tokenizers how many threads to use; both read the number only once."""
    os.environ.update(share_threads(os.environ))
    for name in THREADS:
        os.environ.setdefault(name, str(count))


def share_threads(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which processes use their share of the cores, whatever torchrun sets.

    If the user set a number of threads, that number still applies.
    """
    return dict(environment) | ({} if THREADS[0] in environment else {SHARE_VARIABLE: "yes"})


@cache
def gpus() -> list[dict[str, str]]:
    """The name, memory and driver of each GPU that nvidia-smi lists; the query takes a second."""
    fields = ("name", "memory.total", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        table = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20, encoding="utf-8"
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(fields, map(str.strip, line.split(",")), strict=True))
        for line in table.splitlines()
    ]


def identity(threads: int | None = None) -> list[object]:
    """The properties of this machine that a run's arithmetic depends on.

    `threads` is the thread count of CPU kernels, if they take part in the run.
    """
    # torch, oneDNN and bitsandbytes choose their kernels from these CPU flags, which only Linux
    # reports.
    instructions = sorted(
        flag for flag in cpu_field("flags").split() if flag.startswith(("avx", "amx", "fma"))
    )
    return [cpu_name(), instructions, gpus(), threads]


@cache
def versions() -> dict[str, str | None]:
    """The versions of Python and the libraries; None for a library that is not installed."""
    numbers: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        distribution = next(iter(distributions(name=package)), None)
        numbers[package] = distribution.version if distribution else None
    return numbers


def library_digests() -> dict[str, str]:
    """The digest of each installed library's code, by name."""
    return {
        package: digest for package in PACKAGES if (digest := package_digest(package)) is not None
    }


@cache
def package_digest(package: str) -> str | None:
    """Sixteen hex digits that identify the code of the library that Python imports here.

    Two commits may share a version, so the version is not enough. Returns None if the library is
    not installed. For a wheel, RECORD lists the files with their hashes, and only files changed
    since the installation are read; for a checkout, all code is read.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.resolve()
    hashes = _wheel_hashes(package, folder)
    if not hashes:
        code = (
            path for path in folder.rglob("*") if CODE_FILE.search(path.name) and path.is_file()
        )
        hashes = {path.relative_to(folder.parent).as_posix(): file_hash(path) for path in code}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def _wheel_hashes(package: str, folder: Path) -> dict[str, str]:
    """The hashes of a package's code on disk, by path; empty if `folder` is not from a wheel."""
    wheel = next(iter(distributions(name=package)), None)
    files = {file.as_posix(): file for file in (wheel and wheel.files) or ()}
    record = next(
        (file for path, file in files.items() if path.endswith(".dist-info/RECORD")), None
    )
    if (
        not (wheel and record)
        or f"{package}/__init__.py" not in files
        or folder != Path(str(wheel.locate_file(package))).resolve()
    ):
        return {}
    install_time = _last_change(Path(str(record.locate())).stat())
    hashes: dict[str, str] = {}
    for path, file in files.items():
        installed = Path(str(file.locate()))
        # A path with ".." is a script that names the environment's Python. The file may be gone
        # (Python 3.12 omits it).
        if CODE_FILE.search(path) and not path.startswith("..") and installed.is_file():
            stat = installed.stat()
            is_unchanged = stat.st_size == file.size and _last_change(stat) <= install_time
            is_original = file.hash and is_unchanged
            hashes[path] = (
                f"{file.hash.mode}={file.hash.value}"
                if file.hash and is_original
                else file_hash(installed)
            )
    return hashes


def _last_change(stat: os.stat_result) -> float:
    """The time of a file's last change; mtime alone is not enough, since a program can reset it."""
    return max(stat.st_mtime, stat.st_ctime)


def file_hash(path: Path) -> str:
    """A file's SHA-256 in the format of a wheel's RECORD."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def is_special(path: Path) -> bool:
    """Checks whether a path is a device, a pipe, a socket or this process's output.

    Raises OSError if links form a circle.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if _output_descriptor(status) is not None:
        return True
    return not (S_ISREG(status.st_mode) or S_ISDIR(status.st_mode))


def _output_descriptor(status: os.stat_result) -> int | None:
    """The descriptor of stdout or stderr that refers to the file with this status; else None."""
    for descriptor in (1, 2):
        with suppress(OSError):  # the descriptor may be closed
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
    return None


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the new file replaces `path` on exit, once its data is on the disk.

    If the block fails, `path` stays unchanged. If `path` is a link, its target is replaced.
    Devices and pipes are kept, and the content is written into them. Raises OSError if writing
    fails.
    """
    if is_special(path):
        with temporary_folder() as folder:
            new_file = folder / path.name
            yield new_file
            _copy_into(new_file, path)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target.parent)
    with _locked_folder(target) as folder:
        new_file = folder / target.name
        yield new_file
        with new_file.open("rb+") as file:
            os.fsync(file.fileno())
        new_file.replace(target)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that only this user can read, and remove it on exit.

    Also removes the folders that killed processes left behind.
    """
    temporary = Path(tempfile.gettempdir())
    _remove_leftovers(temporary, "tunegrid")
    with _locked_folder(temporary / "tunegrid") as folder:
        yield folder


@contextmanager
def _locked_folder(target: Path) -> Iterator[Path]:
    """Yield a new, locked folder next to `target`, and remove it on exit.

    The lock is on the folder, since a library may replace the file that it is told to write.
    """
    lock = None
    while lock is None:
        # Nobody can guess this name in advance, so no link can be waiting there.
        folder = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
        folder.mkdir(mode=0o700)
        lock = _lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """Lock a new folder and return the descriptor that holds the lock.

    Returns None if another writer removed the folder as a leftover before it was locked.
    """
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # some network disks do not support locks
        fcntl.flock(lock, fcntl.LOCK_EX)
    if folder.exists():
        return lock
    os.close(lock)
    return None


def _copy_into(source: Path, path: Path) -> None:
    """Write a file's content to a device, a pipe, or this process's own output.

    For stdout or stderr, the descriptor is duplicated, since reopening a file they are redirected
    to would truncate it.
    """
    descriptor = _output_descriptor(path.stat())
    opened = path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")
    with source.open("rb") as content, opened as file:
        shutil.copyfileobj(content, file)


def _remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed writers, including those of earlier versions, left behind.

    A running writer holds a lock on its folder.
    """
    for path in folder.glob(f"{name}.*.part"):
        if not LEFTOVER.search(path.name) or path.is_symlink():
            continue
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.is_file():
                    path.unlink()
            finally:
                os.close(lock)


def write_elsewhere(write: Callable[[Path], None]) -> Path | None:
    """Call `write` with a fallback folder, after writing to the intended place has failed.

    Tries the user's cache, then a new temporary folder. Returns the folder, or None if both fail.
    """
    for make_folder in (_user_cache, partial(tempfile.mkdtemp, prefix="tunegrid-")):
        with suppress(InputError, OSError, RuntimeError):  # RuntimeError: the user has no home
            folder = Path(make_folder())
            write(folder)
            return folder
    return None


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tunegrid")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; raises InputError if it cannot be written."""
    try:
        with replace_file(path) as new_file:
            new_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); give another place"
        ) from None
