"""The key of a cell's result: a digest of all that decides it, by which `--resume` knows whether an older row still holds."""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.grid.backbones import BERT, Backbone
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.machine import identity, library_digests, versions

CODE = ("lib", "fixtures", "benchmarks")
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages, which have digests of their own
LARGE = 64 * 2**20  # bytes; larger folders are compared by sizes and times, not by content
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in memory, which the text of a function shows


def content_key(cell: Cell, circumstances: Mapping[str, Any], grid_files: Sequence[Path] = ()) -> str:
    """Sixteen hex digits over all that decides a cell's result; a session adds circumstances (the device) and users' files."""
    profile, backbone, task = cell.profile, cell.backbone, cell.task
    # Where files lie and what runs the cell is no part of its result: their content and the circumstances are.
    placeless = replace(profile, data_root=None, checkpoint_root=None, feature_cache=None, device=None, threads=None)
    design = (cell.recipe, cell.head, cell.method, task, backbone, cell.optimizer, placeless)
    own_rows = map(Path, task.files.values()) if task.has_own_rows else ()
    rows = [profile.data_root / task.folder] if profile.data_root and not task.has_own_rows else own_rows
    modules = (path for file in grid_files for path in module_files(file))

    def weights_digest(backbone: Backbone) -> str:
        name = backbone.micro if profile.micro else backbone.folder
        return content_digest(profile.checkpoint_root / name) if profile.checkpoint_root and name else ""

    parts = {
        "cell": [cell.id, *(ADDRESS.sub("", repr(part)) for part in design)],
        "backbone": [dict(backbone.shape), dict(backbone.special_tokens)],  # no part of its text
        "circumstances": circumstances,
        "libraries": [sys.prefix, versions(), library_digests()],  # `tunegrid upgrade` names an environment by what is in it
        "machine": identity(),
        "code": code_digest(),
        "users": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*modules, *source_files(cell))],
        "data": content_digest(*rows),
        "weights": weights_digest(backbone) or backbone.revision,
        "scorer": weights_digest(BERT) if task.problem is Problem.GENERATE else "",  # of BERTScore
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def source_files(cell: Cell) -> list[Path]:
    """The files that define the cell's method, optimizer, architecture and metrics, if they are a user's."""
    parts = [*type(cell.method).__mro__, getattr(cell.optimizer, "func", cell.optimizer), cell.head.architecture]
    for metric in cell.task.metrics:
        parts.append(metric.function)
    modules = {sys.modules.get(getattr(part, "__module__", None) or "") for part in parts}
    files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    return sorted(file for file in files if file.is_file() and not file.is_relative_to(ROOT / "lib"))


@cache
def module_files(file: Path) -> list[Path]:
    """A user's file and the modules of its own folder that it imports, in turn; of a package every module."""
    files = [file]
    for path in files:  # which grows
        nodes = list(ast.walk(ast.parse(path.read_bytes())))  # read, not run, so that every process gives the same answer
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        for name in sorted({name.partition(".")[0] for name in names}.difference(CODE if file.parent == ROOT else ())):
            candidates = (file.parent / f"{name}.py", *sorted((file.parent / name).rglob("*.py")))
            files += [module for module in candidates if module.is_file() and module not in files]
    return files


@cache
def code_digest() -> str:
    """Over every module of the suite except its tests, and over its thresholds."""
    files = sorted(path for name in CODE for path in (ROOT / name).rglob("*.*") if path.suffix in (".py", ".toml"))
    return content_digest(*(path for path in files if "tests" not in path.relative_to(ROOT).parts))


@cache
def content_digest(*places: Path) -> str:
    """Over these files and all files in these folders: their content, or sizes and times of much; empty for none."""
    files = [(file, place) for place in places for file in sorted([place, *place.rglob("*")]) if file.is_file()]
    digest, small = hashlib.sha256(), sum(file.stat().st_size for file, _ in files) < LARGE
    for file, place in files:
        digest.update(str(file.relative_to(place)).encode())
        digest.update(file.read_bytes() if small else f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest() if files else ""
