"""Builds the key of a cell's result: a digest of everything that determines the result.

`--resume` reuses an older row if its key is the same.
"""

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.grid.backbones import BERT, Backbone, local_checkpoint
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.libraries import SWITCH
from tunegrid.machine import identity, library_digests, versions

CODE = ("lib", "fixtures", "benchmarks")
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages, each with its own digest
LARGE_FOLDER = 64 * 2**20  # bytes; above this, sizes and times are compared, not content
MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the repr of a function


def content_key(
    cell: Cell,
    circumstances: Mapping[str, Any],
    grid_files: Sequence[Path] = (),
) -> str:
    """The first sixteen hex digits of a hash of everything that determines a cell's result.

    Args:
        cell: the cell that is to run.
        circumstances: other things that determine the result, such as the device.
        grid_files: the user's `--grid` files and plugins.
    """
    profile = cell.profile
    backbone = cell.backbone
    task = cell.task
    # The content of files determines the result, but their paths do not. The device and threads are
    # among the circumstances.
    placeless = replace(
        profile,
        data_root=None,
        checkpoint_root=None,
        feature_cache=None,
        device=None,
        threads=None,
    )
    design = (cell.recipe, cell.head, cell.method, task, backbone, cell.optimizer, placeless)
    rows: list[Path] = []
    if task.has_own_rows:
        rows += map(Path, task.files.values())
    elif profile.data_root:
        rows.append(profile.data_root / task.folder)
    user_files = []
    for file in grid_files:
        user_files += module_files(file)
    user_files += source_files(cell)

    def weights_digest(backbone: Backbone) -> str:
        folder = local_checkpoint(backbone, profile)
        if folder is None:
            return ""
        return content_digest(folder)

    facts = {
        "cell": [cell.id, *(MEMORY_ADDRESS.sub("", repr(value)) for value in design)],
        "backbone": [dict(backbone.shape), dict(backbone.special_tokens)],  # absent from its repr
        "circumstances": circumstances,
        # `tunegrid upgrade` names each environment after its content.
        "libraries": [sys.prefix, versions(), library_digests()],
        "kernels": [os.environ.get(name) for name in (SWITCH, "LOCAL_KERNELS")],
        "machine": identity(),
        "code": code_digest(),
        "users": [hashlib.sha256(file.read_bytes()).hexdigest() for file in user_files],
        "data": content_digest(*rows),
        "weights": weights_digest(backbone) or backbone.revision,
        # BERTScore runs on BERT's weights.
        "scorer": weights_digest(BERT) if task.problem is Problem.GENERATE else "",
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_files(cell: Cell) -> list[Path]:
    """The files outside `lib` that define the cell's method, optimizer, architecture or metrics."""
    optimizer = getattr(cell.optimizer, "func", cell.optimizer)
    definitions = [*type(cell.method).__mro__, optimizer, cell.head.architecture]
    for metric in cell.task.metrics:
        definitions.append(metric.function)
    files = set()
    for definition in definitions:
        module = sys.modules.get(getattr(definition, "__module__", None) or "")
        file = Path(getattr(module, "__file__", None) or "")
        if file.is_file() and not file.is_relative_to(ROOT / "lib"):
            files.add(file)
    return sorted(files)


@cache
def module_files(file: Path) -> list[Path]:
    """A user's file and the modules in its folder that it imports, directly or indirectly.

    If one of them imports any part of a package, all modules of the package are included.
    """
    own_names = CODE if file.parent == ROOT else ()
    files = [file]
    for path in files:  # the list grows in the loop
        names = set[str]()
        # The file is parsed, not run, so that every process gives the same answer.
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
        for name in sorted({name.partition(".")[0] for name in names}.difference(own_names)):
            package = sorted((file.parent / name).rglob("*.py"))
            for module in (file.parent / f"{name}.py", *package):
                if module.is_file() and module not in files:
                    files.append(module)
    return files


@cache
def code_digest() -> str:
    """The digest of the suite's modules and thresholds when first asked for."""
    return digest_files(code_files())


def code_files() -> list[Path]:
    """The suite's modules and thresholds, except the suite's own tests."""
    files = []
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".toml") and "tests" not in path.relative_to(ROOT).parts:
                files.append(path)
    return sorted(files)


@cache
def content_digest(*paths: Path) -> str:
    """The digest of the given paths when first asked for."""
    return digest_files(paths)


def digest_files(paths: Iterable[Path]) -> str:
    """The digest of the given files and of all files in the given folders; empty if none exist.

    It covers the files' names and contents or, if they are large in total, names, sizes and times.
    """
    files = []
    size = 0
    for path in paths:
        for file in sorted([path, *path.rglob("*")]):
            if file.is_file():
                files.append((file, path))
                size += file.stat().st_size
    digest = hashlib.sha256()
    for file, path in files:
        content = f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode()
        if size < LARGE_FOLDER:
            content = file.read_bytes()
        digest.update(str(file.relative_to(path)).encode())
        digest.update(content)
    return digest.hexdigest() if files else ""
