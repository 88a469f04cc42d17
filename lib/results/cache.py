"""What this machine keeps between runs. In: the cache's folder. Out: sizes by kind; the oldest files removed, down to a bound.

Tokenised rows go first, then per-example scores, then checkpoints of cells that finished after all. Journals stay, and so do
checkpoints that `--resume` may take up, and whatever a session that still runs may have written. Needs no torch.
"""

import os
import re
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lib.errors import InputError
from lib.grid.profiles import CACHE
from lib.results.journal import read

GIB = 2**30
BOUND_BYTES = 5 * GIB  # a session prunes to it at its end
PRUNED = ("features", "examples", "checkpoints")  # in this order
KINDS = {
    "features": "tokenised rows",
    "examples": "points and predictions of test rows, by the names that records give",
    "checkpoints": "where long trainings stand; --resume takes them up",
    "journal": "rows of finished cells",
}
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
JOURNAL_NAME = re.compile(r"(\d{8}-\d{6})-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Cached:
    """One file."""

    path: Path
    kind: str
    size_bytes: int
    modified: float


def listing(folder: Path = CACHE) -> list[Cached]:
    """Every file of the kinds that the suite writes, the oldest first; no locks, which are empty."""
    files = [(path, kind) for kind in KINDS for path in (folder / kind).glob("*") if path.is_file() and path.suffix != ".lock"]
    cached = []
    for path, kind in files:
        with suppress(FileNotFoundError):  # another session may prune, too
            stat = path.stat()
            cached.append(Cached(path=path, kind=kind, size_bytes=stat.st_size, modified=stat.st_mtime))
    return sorted(cached, key=lambda file: file.modified)


def prune(keep_bytes: int = BOUND_BYTES, folder: Path = CACHE) -> int:
    """Remove what may go until no more than `keep_bytes` are left; return how many bytes went."""
    files = listing(folder)
    surplus = before = sum(file.size_bytes for file in files) - keep_bytes
    if surplus <= 0:
        return 0
    began, finished = running_since(folder / "journal"), finished_keys(folder / "journal")
    for file in (file for kind in PRUNED for file in files if file.kind == kind):
        ended = file.kind != "checkpoints" or file.path.stem in finished
        if surplus > 0 and ended and file.modified < began and _removed(file):
            surplus -= file.size_bytes
    return before - surplus


def _removed(file: Cached) -> bool:
    """Remove a file unless its lock is held: then a session reads or writes it."""
    try:
        with FileLock(file.path.with_suffix(".lock"), timeout=0) if file.kind == "features" else nullcontext():
            file.path.unlink(missing_ok=True)
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
    """A line a kind, and the sum."""
    files = listing(folder)
    for kind, what in KINDS.items():
        own = [file.size_bytes for file in files if file.kind == kind]
        yield f"{kind:<12} {len(own):>6} files {sum(own) / 2**20:>10.1f} MiB  {what}"
    yield f"{'all':<12} {len(files):>6} files {sum(file.size_bytes for file in files) / 2**20:>10.1f} MiB  in {folder}"


def bytes_of(text: str) -> int:
    """Bytes of a size such as 500MiB or 2GiB; raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(KiB|MiB|GiB|TiB)", text)
    if match is None:
        raise InputError(f"--keep {text!r} is no size; write it as in 500MiB or 2GiB")
    return int(float(match[1]) * UNITS[match[2]])
