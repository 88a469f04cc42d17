"""What this machine keeps between runs: `tunegrid cache` prints kinds and sizes, `--prune` removes the oldest.

Journals go after 30 days. Then tokenised rows go first, then environments of bisections and upgrades, per-example scores, and
checkpoints of cells that finished; never checkpoints that --resume may take up, or what a running session or command wrote.
A session prunes to 5 GiB by itself at its end.
"""

import argparse
import re
import shutil
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.profiles import CACHE
from tunegrid.results.journal import NAME, read, runs
from tunegrid.terminal import say

GIB = 2**30
BOUND_BYTES = 5 * GIB  # a session prunes to it at its end
PRUNED = ("features", "bisect", "upgrade", "examples", "checkpoints")  # in this order
ENVIRONMENT = "environment"  # the folder of one, below that of its version
KINDS = {
    "features": "tokenised rows",
    "bisect": "environments of bisections, which make them again; and their runs, which stay",
    "upgrade": "the same of upgrades",
    "examples": "points and predictions of test rows and figures of modules, by the names that records give",
    "checkpoints": "where long trainings stand; --resume takes them up",
    "journal": "rows of finished cells",
    "speed": "rounds of two environments that `tunegrid speed` compared, which it takes up",
}
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
LOCKED = {"bisect": 1, "upgrade": 0}  # by kind, how far above an environment's parent the lock stands that its command holds
JOURNAL_DAYS = 30  # after which a journal goes: nobody resumes with the same code and versions


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
    """The files of a kind; of bisections and upgrades the environments, and the files beside them."""
    if folder.name not in LOCKED:
        return [path for path in folder.glob("*") if path.is_file()]
    parts = [*folder.glob("*/*"), *folder.glob("*/*/*")]
    return [path for path in parts if path.is_file() or path.name == ENVIRONMENT]


def lock_of(search: Path) -> Path:
    """The lock of a folder of environments, which the command holds that uses them."""
    return search / "running.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; raises InputError where another command has it: to wait for hours and say nothing helps nobody."""
    lock = FileLock(lock_of(folder), timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another command works in {folder}: wait for its end") from None
    try:
        yield
    finally:
        lock.release()


def prune(keep_bytes: int = BOUND_BYTES, folder: Path = CACHE) -> int:
    """Remove what may go until no more than `keep_bytes` are left; return how many bytes went."""
    old_bytes = prune_journals(folder / "journal")
    files = listing(folder)
    surplus = before = sum(file.size_bytes for file in files) - keep_bytes
    if surplus <= 0:
        return old_bytes
    began, finished = running_since(folder / "journal"), finished_keys(folder / "journal")
    for file in (file for kind in PRUNED for file in files if file.kind == kind):
        ended = _may_go(file, finished)
        if surplus > 0 and ended and file.modified < began and _removed(file):
            surplus -= file.size_bytes
    return old_bytes + before - surplus


def prune_journals(folder: Path, now: float | None = None) -> int:
    """Remove journals of sessions that are long over; return how many bytes went."""
    oldest, gone = (time.time() if now is None else now) - JOURNAL_DAYS * 24 * 3600, 0
    for path in folder.glob("*.jsonl"):
        with suppress(OSError):  # another session may prune, too
            stat = path.stat()
            if stat.st_mtime < oldest and not runs(path):
                path.unlink()
                gone += stat.st_size
    return gone


def _may_go(file: Cached, finished: Container[str]) -> bool:
    """Whether nothing that cannot be made again is lost with it."""
    if file.kind in LOCKED:
        return file.path.name == ENVIRONMENT
    return file.kind != "checkpoints" or file.path.name.partition(".")[0] in finished  # a rank has its number in the name


def _removed(file: Cached) -> bool:
    """Remove a file or an environment unless its lock is held: then somebody reads or writes it."""
    lock = file.path.with_suffix(".lock") if file.kind == "features" else None
    lock = lock_of(file.path.parents[LOCKED[file.kind]]) if file.kind in LOCKED else lock
    try:
        with FileLock(lock, timeout=0) if lock else nullcontext():
            shutil.rmtree(file.path) if file.path.is_dir() else file.path.unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True


def running_since(journals: Path) -> float:
    """When the first session began that still runs; infinity where none does."""
    names = [NAME.fullmatch(path.stem) for path in journals.glob("*.jsonl") if runs(path)]
    return min((datetime.strptime(name[1], "%Y%m%d-%H%M%S").timestamp() for name in names if name), default=float("inf"))


def finished_keys(journals: Path) -> set[str]:
    """Keys of cells that finished; a checkpoint is named by its cell's key."""
    ended = [(key, row) for path in journals.glob("*.jsonl") for key, row in read(path)]
    return {key for key, row in ended if row["extra_info"].get("status") in ("passed", "missed", "begun", "stopped")}


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


def main(arguments: list[str] | None = None) -> int:
    """Prune where asked, print what is there; return 0."""
    parser = argparse.ArgumentParser(prog="tunegrid cache", description=__doc__)
    parser.add_argument("--prune", action="store_true", help="remove the oldest files")
    parser.add_argument("--keep", metavar="SIZE", help="with --prune: at most so much stays, as in 500MiB or 2GiB (5GiB)")
    options = parser.parse_args(arguments)
    if options.keep and not options.prune:
        parser.error("--keep says how much --prune leaves: give both")
    try:
        keep = bytes_of(options.keep) if options.keep else BOUND_BYTES
        if options.prune:
            say(f"removed {prune(keep, CACHE) / 2**20:.1f} MiB")
    except InputError as error:
        refuse(parser, error)
    say("\n".join(shown(CACHE)))
    return 0
