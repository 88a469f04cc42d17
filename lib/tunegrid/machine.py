"""This machine, asked without torch: its processors, threads, memory, GPUs and libraries, and files
on its disk.
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

THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")  # torch's, and those of tokenizers
# Set where OMP_NUM_THREADS is not the user's, so that a process heeds its share alone
SHARE_VARIABLE = "TUNEGRID_SHARED_OUT"
# Of a container's own control group: microseconds in a period, or "max"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Variables that choose which instructions of a CPU torch's kernels, oneDNN and MKL use: other ones
# round otherwise.
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
    # Scores and quantiles
    "numpy",
    "scipy",
    "rouge_score",
    "nltk",
)
LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.part$")  # a folder with a file that is not yet whole
CODE = re.compile(r"\.(py|so|pyd|dll|dylib)(\.\d+)*$")  # what Python and the loader read


def cpu_name() -> str:
    """The CPU's model name on Linux, else its architecture; with `INSTRUCTIONS` that are set, and
    AMX, which no name tells.
    """
    name = cpu_field("model name") or platform.machine()
    units = " with AMX" if "amx_bf16" in cpu_field("flags").split() else ""
    settings = [
        f"{variable}={os.environ[variable]}" for variable in INSTRUCTIONS if variable in os.environ
    ]
    return ", ".join([f"{name}{units}", *settings])


def cpu_field(name: str) -> str:
    """What Linux tells of the first processor, as its "flags"; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def usable_cores() -> int:
    """Cores that this process may use: as many as a scheduler gave it (TUNEGRID_CORES), else as
    system and container tell.
    """
    if number := os.environ.get("TUNEGRID_CORES"):
        if not number.isdecimal() or int(number) < 1:
            raise InputError(f"TUNEGRID_CORES is {number!r}: expected a number of cores, as 4")
        return int(number)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # A container's quota of processor time counts as cores, rounded down: more threads than that
    # would wait for each other.
    quota, _, period = (
        CPU_QUOTA.read_text(encoding="utf-8") if CPU_QUOTA.is_file() else ""
    ).partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() else cores


def worker() -> tuple[int, int]:
    """This process's number among pytest's workers, and how many there are; 0 of 1 without
    workers.
    """
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return int(name.removeprefix("gw")), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def thread_share(requested: int | None, ranks: int = 1) -> int:
    """Threads of this process: as requested, as the user gave them, or its share of the cores among
    workers and their ranks.
    """
    number = os.environ.get(THREADS[0], "").partition(",")[0].strip()
    users = int(number) if number.isdecimal() and SHARE_VARIABLE not in os.environ else 0
    return requested or users or max(1, usable_cores() // (worker()[1] * ranks))


def announce_threads(count: int) -> None:
    """Tell torch and the tokenizers how many threads this process has; they listen once."""
    os.environ.update(share_threads(os.environ))
    for name in THREADS:
        os.environ.setdefault(name, str(count))


def share_threads(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of processes that heed their share of the cores unless the user gave threads,
    whatever torchrun gives.
    """
    return dict(environment) | ({} if THREADS[0] in environment else {SHARE_VARIABLE: "yes"})


@cache
def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each GPU; empty if there is none. It takes a second to ask."""
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
    """What of this machine a run's arithmetic depends on; `threads` are those of a CPU's kernels,
    if they have a part in it.
    """
    # By these flags of the CPU (none if it is not Linux) torch, oneDNN and bitsandbytes choose
    # their kernels.
    instructions = sorted(
        flag for flag in cpu_field("flags").split() if flag.startswith(("avx", "amx", "fma"))
    )
    return [cpu_name(), instructions, gpus(), threads]


@cache
def versions() -> dict[str, str | None]:
    """Python's and the libraries' versions; None for one that is not installed."""
    numbers = {
        package: next((one.version for one in distributions(name=package)), None)
        for package in PACKAGES
    }
    return {"python": platform.python_version(), **numbers}


def library_digests() -> dict[str, str]:
    """The digits of each library that is installed."""
    return {
        package: digest for package in PACKAGES if (digest := package_digest(package)) is not None
    }


@cache
def package_digest(package: str) -> str | None:
    """Sixteen hex digits of a library's code that Python imports here, as two commits may have one
    version; None: no such one.

    Of a wheel's files, which RECORD lists with their hashes, only those changed since are read; of
    a checkout all.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.resolve()
    hashes = _wheel_hashes(package, folder)
    if not hashes:
        code = (path for path in folder.rglob("*") if CODE.search(path.name) and path.is_file())
        hashes = {path.relative_to(folder.parent).as_posix(): file_hash(path) for path in code}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def _wheel_hashes(package: str, folder: Path) -> dict[str, str]:
    """Hashes of a wheel's code by path, as it lies on the disk; empty if no wheel put it into this
    folder.
    """
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
        place = Path(str(file.locate()))
        # A path with ".." is a script, which names the environment's Python; a file may be gone
        # (Python 3.12 leaves it out).
        if CODE.search(path) and not path.startswith("..") and place.is_file():
            stat = place.stat()
            is_unchanged = stat.st_size == file.size and _last_change(stat) <= install_time
            is_original = file.hash and is_unchanged
            hashes[path] = (
                f"{file.hash.mode}={file.hash.value}"
                if file.hash and is_original
                else file_hash(place)
            )
    return hashes


def _last_change(stat: os.stat_result) -> float:
    """The time of a file's last change: an edit can set back the first of these two alone."""
    return max(stat.st_mtime, stat.st_ctime)


def file_hash(path: Path) -> str:
    """A file's hash as RECORD has it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def is_special(path: Path) -> bool:
    """Checks that a path is a device, a pipe, a socket or this process's output; raises OSError for
    a circle of links.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if _output_descriptor(status) is not None:
        return True
    return not (S_ISREG(status.st_mode) or S_ISDIR(status.st_mode))


def _output_descriptor(status: os.stat_result) -> int | None:
    """The descriptor of this process's output, or of its errors, if it is that file."""
    for descriptor in (1, 2):
        with suppress(OSError):  # it may be closed
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
    return None


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end, when the disk has it; without
    an end nothing changes.

    Of a link the target is replaced. A device or a pipe stays: the content is written into it.
    Raises OSError if that fails.
    """
    if is_special(path):
        with temporary_folder() as folder:
            part = folder / path.name
            yield part
            _copy_into(part, path)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target.parent)
    with _locked_folder(target) as folder:
        part = folder / target.name
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for this user alone until the end; what killed processes left of theirs is
    removed.
    """
    place = Path(tempfile.gettempdir())
    _remove_leftovers(place, "tunegrid")
    with _locked_folder(place / "tunegrid") as folder:
        yield folder


@contextmanager
def _locked_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, locked while this process lives and removed at the end.

    The folder holds the lock, since a library may put a file of its own in the place of the one
    that it is given.
    """
    lock = None
    while lock is None:
        # Its name cannot be known before, so no link can lie there.
        folder = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
        folder.mkdir(mode=0o700)
        lock = _lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """The descriptor that holds a new folder's lock; None if another writer took it for a leftover
    before it was locked.
    """
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # not every network's disk has locks
        fcntl.flock(lock, fcntl.LOCK_EX)
    if folder.exists():
        return lock
    os.close(lock)
    return None


def _copy_into(source: Path, path: Path) -> None:
    """Write a file's content into a device or a pipe; this process's own output is not opened anew,
    which would cut it off.
    """
    descriptor = _output_descriptor(path.stat())
    opened = path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")
    with source.open("rb") as content, opened as file:
        shutil.copyfileobj(content, file)


def _remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed writers left, files of earlier versions too: a living one holds a lock on
    its folder.
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
    """Write what has no room in its own place: to the user's cache, else to a new temporary folder.

    Returns the folder; None if it could be written nowhere.
    """
    for make_folder in (_user_cache, partial(tempfile.mkdtemp, prefix="tunegrid-")):
        with suppress(InputError, OSError, RuntimeError):  # RuntimeError: a user without a home
            folder = Path(make_folder())
            write(folder)
            return folder
    return None


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tunegrid")


def write_whole(path: Path, text: str) -> None:
    """Write what a command was asked for; raises InputError if the place cannot be written."""
    try:
        with replace_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); give another place"
        ) from None
