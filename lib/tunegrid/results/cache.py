"""What this machine keeps between runs: its size by kind, and the removal of the oldest files down to a bound.

Tokenised rows go first, then environments of bisections, per-example scores, and checkpoints of cells that finished after all.
Journals stay, and so do runs of bisections, checkpoints that `--resume` may take up, and whatever a session or a bisection that
still runs may have written. Needs no torch.
"""

import os
import re
import shutil
from collections.abc import Container, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tunegrid.errors import InputError
from tunegrid.grid.profiles import CACHE
from tunegrid.results.journal import read

GIB = 2**30
BOUND_BYTES = 5 * GIB  # a session prunes to it at its end
PRUNED = ("features", "bisect", "examples", "checkpoints")  # in this order
ENVIRONMENT = "environment"  # the folder of one, below that of its version
KINDS = {
    "features": "tokenised rows",
    "bisect": "environments of bisections, which make them again; and their runs, which stay",
    "examples": "points and predictions of test rows, by the names that records give",
    "checkpoints": "where long trainings stand; --resume takes them up",
    "journal": "rows of finished cells",
}
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
JOURNAL_NAME = re.compile(r"(\d{8}-\d{6})-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Cached:
    """One file, or an environment as a whole.

    Attributes:
        modified: when it was last written.
        files: how many it has.
    """

    path: Path
    kind: str
    size_bytes: int
    modified: float
    files: int = 1


def listing(folder: Path = CACHE) -> list[Cached]:
    """All of the kinds that the suite writes, the oldest first; no locks, which are empty."""
    paths = [(path, kind) for kind in KINDS for path in _paths(folder / kind) if path.suffix != ".lock"]
    cached = []
    for path, kind in paths:
        with suppress(FileNotFoundError):  # another session may prune, too
            stats = [file.lstat() for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path.stat()]
            size, modified = sum(stat.st_size for stat in stats), max((stat.st_mtime for stat in stats), default=0.0)
            cached.append(Cached(path=path, kind=kind, size_bytes=size, modified=modified, files=len(stats)))
    return sorted(cached, key=lambda file: file.modified)


def _paths(folder: Path) -> list[Path]:
    """The files of a kind; of bisections the environments, and the files of each search and version."""
    if folder.name != "bisect":
        return [path for path in folder.glob("*") if path.is_file()]
    parts = [*folder.glob("*/*"), *folder.glob("*/*/*")]
    return [path for path in parts if path.is_file() or path.name == ENVIRONMENT]


def lock_of(search: Path) -> Path:
    """The lock of a bisection's folder, which its command holds."""
    return search / "running.lock"


def prune(keep_bytes: int = BOUND_BYTES, folder: Path = CACHE) -> int:
    """Remove what may go until no more than `keep_bytes` are left; return how many bytes went."""
    files = listing(folder)
    surplus = before = sum(file.size_bytes for file in files) - keep_bytes
    if surplus <= 0:
        return 0
    began, finished = running_since(folder / "journal"), finished_keys(folder / "journal")
    for file in (file for kind in PRUNED for file in files if file.kind == kind):
        ended = _may_go(file, finished)
        if surplus > 0 and ended and file.modified < began and _removed(file):
            surplus -= file.size_bytes
    return before - surplus


def _may_go(file: Cached, finished: Container[str]) -> bool:
    """Whether nothing that cannot be made again is lost with it."""
    if file.kind == "bisect":
        return file.path.name == ENVIRONMENT
    return file.kind != "checkpoints" or file.path.name.partition(".")[0] in finished  # a rank has its number in the name


def _removed(file: Cached) -> bool:
    """Remove a file or an environment unless its lock is held: then somebody reads or writes it."""
    locks = {"features": file.path.with_suffix(".lock"), "bisect": lock_of(file.path.parents[1])}
    try:
        with FileLock(locks[file.kind], timeout=0) if file.kind in locks else nullcontext():
            shutil.rmtree(file.path) if file.path.is_dir() else file.path.unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True


def running_since(journals: Path) -> float:
    """When the first session began that still runs and has finished a cell; infinity where none does."""
    starts = (JOURNAL_NAME.fullmatch(path.stem) for path in journals.glob("*.jsonl"))
    began = [datetime.strptime(name[1], "%Y%m%d-%H%M%S").timestamp() for name in starts if name and _lives(int(name[2]))]
    return min(began, default=float("inf"))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # this session is at its end


def finished_keys(journals: Path) -> set[str]:
    """Keys of cells that finished; a checkpoint is named by its cell's key."""
    return {key for path in journals.glob("*.jsonl") for key, _ in read(path)}


def shown(folder: Path = CACHE) -> Iterator[str]:
    """One line per kind, and the sum."""
    files = listing(folder)
    for kind, what in KINDS.items():
        yield _line(kind, [file for file in files if file.kind == kind], what)
    yield _line("all", files, f"in {folder}")


def _line(name: str, files: Sequence[Cached], what: str) -> str:
    count, size_bytes = sum(file.files for file in files), sum(file.size_bytes for file in files)
    return f"{name:<12} {count:>6} files {size_bytes / 2**20:>10.1f} MiB  {what}"


def bytes_of(text: str) -> int:
    """Bytes of a size such as 500MiB or 2GiB; raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(KiB|MiB|GiB|TiB)", text)
    if match is None:
        raise InputError(f"invalid --keep {text!r}: expected a size, as in 500MiB or 2GiB")
    return int(float(match[1]) * UNITS[match[2]])
