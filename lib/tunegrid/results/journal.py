"""Writes finished cells to disk as they end: `.cache/journal/*.jsonl`, one row per line.

A killed session loses no finished cell: `tunegrid merge --journal` makes a run's JSON from the journal. `pytest --resume` takes
the cells that passed from it, if everything that decides their results is the same. Needs no torch.
"""

import ast
import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.backbones import BERT
from tunegrid.grid.cells import Cell
from tunegrid.grid.profiles import CACHE
from tunegrid.grid.tasks import Problem
from tunegrid.libraries import library_digests
from tunegrid.machine import cpu_name, gpus, instruction_sets, versions
from tunegrid.results.files import BenchmarkRow, RunJson, has_no_time, is_cell

JOURNAL = CACHE / "journal"
CODE = ("lib", "fixtures", "benchmarks")
LARGE = 64 * 2**20  # bytes; larger folders are compared by sizes and times, not by content
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
NAME = re.compile(r"(\d{8}-\d{6})-(\d+)")  # of a journal: when its session began, and its process


class Journal:
    """One session's lines; the first one creates the file, and says what file the session's run goes to."""

    def __init__(self, folder: Path = JOURNAL, run: Path | None = None) -> None:
        """A file of its own for each session, whose run goes to the file `run`."""
        self.path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
        self._run = run

    def begin(self, rows: Iterable[BenchmarkRow]) -> None:
        """Write the rows of cells that are to run, which says so: a later row of the same test takes their place."""
        self._write({"key": "", "row": row} for row in rows)

    def append(self, key: str, row: BenchmarkRow) -> None:
        """Write a finished row and wait until the disk has it; raises OSError where it has no room."""
        self._write([{"key": key, "row": row}])

    def _write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Each on a line of its own, also after half a line that a full disk or a kill left."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            first = [{"run": str(self._run.resolve())}] if self._run and not file.tell() else []
            text = "".join(json.dumps(entry) + "\n" for entry in [*first, *entries])
            file.write((b"\n" if _is_torn(self.path) else b"") + text.encode())
            file.flush()
            os.fsync(file.fileno())


def _is_torn(path: Path) -> bool:
    """Whether a file ends within a line."""
    with path.open("rb") as file:
        return bool(file.seek(0, os.SEEK_END)) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"


def read(path: Path) -> Iterator[tuple[str, BenchmarkRow]]:
    """Keys and rows of a journal; a line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            yield str(entry["key"]), entry["row"] | {"extra_info": entry["row"]["extra_info"] | {}}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def as_run(path: Path) -> RunJson:
    """The rows of a journal as a run of this machine; raises InputError where no cell has finished."""
    # The last of each test: a cell that was to run has run, one whose process was killed ran again.
    rows = list({str(row.get("fullname") or number): row for number, (_, row) in enumerate(read(path))}.values())
    if not _ended_cells(path):
        raise InputError(f"{path} holds no finished cell")
    return {
        "machine_info": {"tunegrid": {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}},
        "commit_info": {"dirty": None},  # a journal does not know
        "benchmarks": rows,
        "datetime": datetime.now(UTC).isoformat(),
        "version": "journal",
    }


def passed(folder: Path = JOURNAL) -> dict[str, tuple[BenchmarkRow, Path]]:
    """Rows of cells that passed, or began soundly, by key, with the journal that holds them; the latest of several."""
    rows = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows.update({key: (row, path) for key, row in read(path) if _is_sound(row["extra_info"])})
    return rows


def _is_sound(record: Mapping[str, Any]) -> bool:
    """Whether a cell passed, or made its first updates without an objection, which another key says."""
    return record.get("status") == "passed" or (record.get("status") == "begun" and not record.get("missed"))


def content_key(cell: Cell, circumstances: Mapping[str, Any], grid_files: Sequence[Path] = ()) -> str:
    """Sixteen hex digits over all that decides a cell's result: recipe, limits, seed, code, data, weights, libraries.

    Args:
        cell: at its profile.
        circumstances: what the session adds: the device, its threads, the hub's commit.
        grid_files: the user's, which add to the grid.
    """
    profile = cell.profile
    weights = cell.backbone.micro if profile.micro else cell.backbone.folder
    parts = {
        "cell": cell.id,
        "profile": profile.id,
        "parts": [_text(part) for part in (cell.recipe, cell.head, cell.method, cell.task, cell.backbone)],
        "backbone": [dict(cell.backbone.shape), dict(cell.backbone.special_tokens)],
        "optimizer": _text(cell.optimizer),
        "rows": [profile.cap(cell.task.id, split) for split in ("train", "validation", "test")],
        "own_test": profile.own_test,
        "label_noise": profile.label_noise,
        "seed": profile.seed,
        "perturbation": profile.perturbation,
        "ranks": [profile.ranks, profile.fsdp],
        "circumstances": circumstances,
        "versions": versions(),
        "libraries": library_digests(),
        "machine": [cpu_name(), instruction_sets(), _gpus()],
        "code": code_digest(),
        "sources": source_digests(cell),
        "grid": [hashlib.sha256(path.read_bytes()).hexdigest() for file in grid_files for path in with_own_imports(file)],
        "data": data_digest(cell),
        "weights": folder_digest(profile.checkpoint_root / weights if profile.checkpoint_root and weights else None)
        or cell.backbone.revision,
        "scorer": _scorer_digest(cell),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _text(part: object) -> str:
    """A part's fields as text, without the addresses in memory that functions show."""
    return ADDRESS.sub("", repr(part))


def source_digests(cell: Cell) -> list[str]:
    """Of the files that define the cell's method, optimizer and architecture, which may be a user's."""
    optimizer = getattr(cell.optimizer, "func", cell.optimizer)
    things = (*type(cell.method).__mro__, optimizer, cell.head.architecture)
    paths = {path for thing in things if (path := _source_of(thing)) and not path.is_relative_to(ROOT / "lib")}  # in `code`
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)]


def _source_of(thing: Any) -> Path | None:
    try:
        path = Path(inspect.getsourcefile(thing) or "")
    except TypeError:  # a name, or an object that no file defines
        return None
    return path if path.is_file() else None


def with_own_imports(file: Path) -> list[Path]:
    """A user's file and the modules of its own folder that it imports, in turn; of a package every module.

    Imports are read, not run, so that every process gives the same answer. What belongs to the suite is in `code_digest`.
    """
    known, waiting = [file], [file]
    while waiting:
        for name in _imported(waiting.pop().read_bytes()):
            package, module = file.parent / name, file.parent / f"{name}.py"
            new = sorted(package.rglob("*.py")) if package.is_dir() else [module] if module.is_file() else []
            new = [] if package in (ROOT / part for part in CODE) else [path for path in new if path not in known]
            known += new
            waiting += new
    return known


@cache
def _imported(source: bytes) -> set[str]:
    """First names of what a module imports, inside functions too."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names}


_gpus = cache(gpus)


def _scorer_digest(cell: Cell) -> str:
    """Of the BERT that computes BERTScore, where the cell generates text."""
    root, bert = cell.profile.checkpoint_root, BERT.micro if cell.profile.micro else BERT.folder
    return folder_digest(root / bert) if root and bert and cell.task.problem is Problem.GENERATE else ""


@cache
def code_digest() -> str:
    """Over every module of the suite except its tests, and over its thresholds."""
    digest = hashlib.sha256((ROOT / "conftest.py").read_bytes())
    for path in sorted(path for name in CODE for path in (ROOT / name).rglob("*.*")):
        if path.suffix in (".py", ".toml") and "tests" not in path.relative_to(ROOT).parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def data_digest(cell: Cell) -> str:
    """Over the files with a cell's rows: those that its task names, or those of its folder."""
    root, task = cell.profile.data_root, cell.task
    if task.has_own_rows:
        return files_digest(Path("/"), tuple(path for path in map(Path, task.files.values()) if path.is_file()))
    return folder_digest(root and root / task.folder)


@cache
def folder_digest(folder: Path | None) -> str:
    """Over a folder's files: their content, or sizes and times of large folders; empty for no folder."""
    if folder is None or not folder.is_dir():
        return ""
    return files_digest(folder, tuple(sorted(path for path in folder.rglob("*") if path.is_file())))


@cache
def files_digest(folder: Path, files: tuple[Path, ...]) -> str:
    """The same over some files, which are named from a folder on."""
    small = sum(path.stat().st_size for path in files) < LARGE
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if small else f"{path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def latest(folder: Path = JOURNAL, run: Path | None = None) -> Path:
    """The newest journal of the sessions that were to write this run; without such, the newest whose session is over.

    Raises:
        InputError: where there is none.
    """
    journals = sorted(folder.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not journals:
        raise InputError(f"no journal in {folder}: no cell has finished here yet")
    own = [path for path in journals if run and run_of(path) == str(run.resolve())]
    over = [path for path in journals if not runs(path)]
    if not own and not over:
        raise InputError(f"every session that has a journal in {folder} still runs: wait for its end, or name one of its files")
    *_, newest = own or over
    return next((path for path in reversed(own or over) if _ended_cells(path)), newest)


def _ended_cells(path: Path) -> bool:
    """Whether a journal holds a cell that came to its end."""
    return any(is_cell(row["extra_info"]) and not has_no_time(row) for _, row in read(path))


def run_of(path: Path) -> str | None:
    """The file that a journal's session was to write; None where it does not say."""
    with path.open(encoding="utf-8", errors="replace") as file, suppress(ValueError, TypeError, KeyError):
        return str(json.loads(file.readline())["run"])
    return None


def runs(path: Path) -> bool:
    """Whether the session of a journal still runs; this one, which asks at its end, does not."""
    name = NAME.fullmatch(path.stem)
    if name is None or int(name[2]) == os.getpid():
        return False
    try:
        os.kill(int(name[2]), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
