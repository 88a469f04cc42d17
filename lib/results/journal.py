"""Finished cells on disk as they end. In: rows of pytest-benchmark's JSON. Out: `.cache/journal/*.jsonl`, one row a line.

A session that is killed has lost nothing that was finished: `python -m lib.results finish` makes a run's JSON of the journal,
`pytest --resume` takes what passed from it, where all that decides a cell's result is the same. Needs no torch.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from lib.errors import InputError
from lib.grid.backbones import BERT
from lib.grid.cells import Cell
from lib.grid.profiles import CACHE
from lib.grid.tasks import Problem
from lib.machine import cpu_name, gpus, versions

ROOT = Path(__file__).parents[2]
JOURNAL = CACHE / "journal"
CODE = ("lib", "fixtures", "benchmarks")
LARGE = 64 * 2**20  # bytes; folders above it are told apart by sizes and times, not by content
Row = dict[str, Any]


class Journal:
    """One session's lines; the file appears with the first."""

    def __init__(self, folder: Path = JOURNAL) -> None:
        """A file of its own for each session."""
        self.path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"

    def append(self, key: str, row: Row) -> None:
        """Write a finished row and wait until the disk has it; raises OSError where it has no room."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": row}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> Iterator[tuple[str, Row]]:
    """Keys and rows of a journal; a last line that a kill cut off is left out."""
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            found = json.loads(line)
            yield found["key"], found["row"]
        except (ValueError, KeyError, TypeError):
            continue


def passed(folder: Path = JOURNAL) -> dict[str, tuple[Row, Path]]:
    """Rows of cells that passed, by key, with the journal that holds them; the latest where there are several."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        found.update({key: (row, path) for key, row in read(path) if row["extra_info"]["outcome"] == "passed"})
    return found


def content_key(cell: Cell, asked: Mapping[str, Any]) -> str:
    """Sixteen hex digits over all that decides a cell's result: recipe, limits, seed, code, data, weights, versions.

    `asked` is what the command line adds, as the source of metrics.
    """
    profile = cell.profile
    parts = {
        "cell": cell.id,
        "profile": profile.id,
        "recipe": asdict(cell.recipe),
        "head": asdict(cell.head),
        "quantization": cell.quantization and asdict(cell.quantization),
        "rows": [profile.cap(cell.task.id, split) for split in ("train", "validation", "test")],
        "own_test": profile.own_test,
        "seed": profile.seed,
        "device": profile.device,
        "threads": profile.threads,
        "asked": dict(asked),
        "versions": versions(),
        "machine": [cpu_name(), _gpus()],
        "code": code_digest(),
        "data": folder_digest(profile.data_root and profile.data_root / cell.task.folder),
        "weights": folder_digest(
            profile.checkpoint_root
            and profile.checkpoint_root / (cell.backbone.micro if profile.micro else cell.backbone.folder)
        )
        or cell.backbone.revision,
        "scorer": _scorer_digest(cell),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


_gpus = cache(gpus)


def _scorer_digest(cell: Cell) -> str:
    """Of the BERT that BERTScore takes, where the cell generates."""
    root, bert = cell.profile.checkpoint_root, BERT.micro if cell.profile.micro else BERT.folder
    return folder_digest(root / bert) if root and cell.task.problem is Problem.GENERATE else ""


@cache
def code_digest() -> str:
    """Over every module of the suite but its own tests, and over its bounds."""
    digest = hashlib.sha256((ROOT / "conftest.py").read_bytes())
    for path in sorted(path for name in CODE for path in (ROOT / name).rglob("*.*")):
        if path.suffix in (".py", ".toml") and "tests" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def folder_digest(folder: Path | None) -> str:
    """Over a folder's files: their content, or where they are large, sizes and times; empty for none."""
    if folder is None or not folder.is_dir():
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    small = sum(path.stat().st_size for path in files) < LARGE
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if small else f"{path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def latest(folder: Path = JOURNAL) -> Path:
    """The newest journal; raises InputError where there is none."""
    found = sorted(folder.glob("*.jsonl"))
    if not found:
        raise InputError(f"no journal in {folder}: no cell has finished here yet")
    return found[-1]
