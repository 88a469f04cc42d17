"""Finished cells on disk as they end, one row a line in `.cache/journal/*.jsonl`, with the key that says if a row still holds.

A killed session loses no finished cell: `tunegrid merge --journal` makes a run's JSON from the journal, and `pytest --resume`
takes from it the cells that passed, if everything that decides their results is the same. Needs no torch.
"""

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.backbones import BERT, Backbone
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import CACHE
from tunegrid.grid.tasks import Problem
from tunegrid.machine import cpu_name, gpus, identity, library_digests, versions
from tunegrid.results.files import BenchmarkRow, RunJson, has_no_time, is_cell

JOURNAL = CACHE / "journal"
CODE = ("lib", "fixtures", "benchmarks")
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages, which have digests of their own
LARGE = 64 * 2**20  # bytes; larger folders are compared by sizes and times, not by content
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in memory, which the text of a function shows


class Journal:
    """One session's file, which its first row creates."""

    def __init__(self, folder: Path = JOURNAL) -> None:
        """Named by when the session began, and by its process."""
        self.path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"

    def append(self, key: str, *rows: BenchmarkRow) -> None:
        """Write rows and wait until the disk has them; raises OSError where it has no room.

        A later row of a test takes the place of an earlier one, as that of a cell which was only going to run.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            for row in rows:  # with a break before it, too: a kill or a full disk may have left half a line
                file.write(f"\n{json.dumps({'key': key, 'row': row})}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> Iterator[tuple[str, BenchmarkRow]]:
    """Keys and rows of a journal; a line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            yield str(entry["key"]), entry["row"] | {"extra_info": entry["row"]["extra_info"] | {}}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


def passed(folder: Path = JOURNAL) -> dict[str, tuple[BenchmarkRow, Path]]:
    """By key, the latest row of each cell that passed, or made its first updates without an objection, and its journal."""
    rows = {}
    for path in sorted(folder.glob("*.jsonl")):
        for key, row in read(path):
            status, missed = (row["extra_info"].get(name) for name in ("status", "missed"))
            if status == "passed" or (status == "begun" and not missed):
                rows[key] = (row, path)
    return rows


def latest(folder: Path = JOURNAL) -> Path:
    """The newest journal that holds a cell which came to its end, else the newest; raises InputError where there is none."""
    journals = sorted(folder.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    if not journals:
        raise InputError(f"no journal in {folder}: no cell has finished here yet")
    return next(filter(_has_ended_cell, journals), journals[0])


def _has_ended_cell(path: Path) -> bool:
    return any(is_cell(row["extra_info"]) and not has_no_time(row) for _, row in read(path))


def as_run(path: Path) -> RunJson:
    """The rows of a journal as a run of this machine; raises InputError where no cell has finished."""
    if not _has_ended_cell(path):
        raise InputError(f"{path} holds no finished cell")
    return {
        "machine_info": {"tunegrid": {"versions": versions(), "cpu": cpu_name(), "gpus": gpus()}},
        "commit_info": {"dirty": None},  # a journal does not know
        "benchmarks": list({str(row.get("fullname") or number): row for number, (_, row) in enumerate(read(path))}.values()),
        "datetime": datetime.now(UTC).isoformat(),
        "version": "journal",
    }


def content_key(cell: Cell, circumstances: Mapping[str, Any], grid_files: Sequence[Path] = ()) -> str:
    """Sixteen hex digits over all that decides a cell's result: recipe, limits, seed, code, data, weights, libraries.

    A session adds circumstances (the device, its threads, the hub's commit) and the user's files, which add to the grid.
    """
    profile, backbone, task = cell.profile, cell.backbone, cell.task
    # Where files lie and what runs the cell is no part of its result: their content and the circumstances are.
    placeless = replace(profile, data_root=None, checkpoint_root=None, feature_cache=None, device=None, threads=None)
    described = (cell.recipe, cell.head, cell.method, task, backbone, cell.optimizer, placeless)
    own_rows = map(Path, task.files.values()) if task.has_own_rows else ()
    rows = [profile.data_root / task.folder] if profile.data_root and not task.has_own_rows else own_rows

    def weights_of(backbone: Backbone) -> str:
        name = backbone.micro if profile.micro else backbone.folder
        return content_digest(profile.checkpoint_root / name) if profile.checkpoint_root and name else ""

    parts = {
        "cell": [cell.id, *(ADDRESS.sub("", repr(part)) for part in described)],
        "backbone": [dict(backbone.shape), dict(backbone.special_tokens)],  # no part of its text
        "circumstances": circumstances,
        "libraries": [sys.prefix, versions(), library_digests()],  # `tunegrid upgrade` names an environment by what is in it
        "machine": identity(),
        "code": code_digest(),
        "sources": source_digests(cell),
        "grid": [hashlib.sha256(path.read_bytes()).hexdigest() for file in grid_files for path in with_own_imports(file)],
        "data": content_digest(*rows),
        "weights": weights_of(backbone) or backbone.revision,
        "scorer": weights_of(BERT) if task.problem is Problem.GENERATE else "",  # of BERTScore
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def source_digests(cell: Cell) -> list[str]:
    """Of the files that define the cell's method, optimizer and architecture, where they are a user's."""
    parts = (*type(cell.method).__mro__, getattr(cell.optimizer, "func", cell.optimizer), cell.head.architecture)
    modules = {sys.modules.get(getattr(part, "__module__", None) or "") for part in parts}
    files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    users = (path for path in sorted(files) if path.is_file() and not path.is_relative_to(ROOT / "lib"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in users]


@cache
def with_own_imports(file: Path) -> list[Path]:
    """A user's file and the modules of its own folder that it imports, in turn; of a package every module.

    Imports are read, not run, so that every process gives the same answer. What belongs to the suite is in `code_digest`.
    """
    files = [file]
    for path in files:  # which grows
        nodes = list(ast.walk(ast.parse(path.read_bytes())))  # inside functions, too
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        for name in sorted({name.partition(".")[0] for name in names}.difference(CODE if file.parent == ROOT else ())):
            candidates = (file.parent / f"{name}.py", *sorted((file.parent / name).rglob("*.py")))
            files += [module for module in candidates if module.is_file() and module not in files]
    return files


@cache
def code_digest() -> str:
    """Over every module of the suite except its tests, and over its thresholds."""
    digest = hashlib.sha256((ROOT / "conftest.py").read_bytes())
    for path in sorted(path for name in CODE for path in (ROOT / name).rglob("*.*")):
        if path.suffix in (".py", ".toml") and "tests" not in path.relative_to(ROOT).parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def content_digest(*places: Path) -> str:
    """Over these files and all files in these folders: their content, or sizes and times of much; empty for none."""
    files = [(file, place) for place in places for file in sorted([place, *place.rglob("*")]) if file.is_file()]
    digest, small = hashlib.sha256(), sum(file.stat().st_size for file, _ in files) < LARGE
    for file, place in files:
        digest.update(str(file.relative_to(place)).encode())
        digest.update(file.read_bytes() if small else f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest() if files else ""
