"""Rows that nobody trained, made of committed ones, to measure the suite itself. In: how many. Out: a run, and its grid file.

Each cell of the quick baseline stands for many, under methods of other names. Figures differ in their last digits, so that no
two cells share results. Needs no torch.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from itertools import count, islice
from pathlib import Path
from typing import Any

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.results.estimates import REPORTS
from tunegrid.results.files import Row, load

BASELINE = REPORTS / "baselines" / "quick-cpu.json"
SEEDS = 5
NUDGE = 1e-7  # points and nats by which the figures of one cell differ from the next one's
# A user's file that adds the methods to the grid.
GRID = """
from dataclasses import replace

from tunegrid.grid.methods import METHODS


def pytest_tunegrid_grid(grid):
    for copy in range(1, {copies}):
        for method in METHODS:
            grid.add_method(replace(method, id=f"{{method.id}}x{{copy}}"), like=method.id)
"""


def cells_of(rows: int) -> list[str]:
    """The cells of so many rows."""
    copies = (f"{cell}x{copy}" if copy else cell for copy in count() for cell in STUDY_IDS)
    return list(islice(copies, rows // SEEDS))


def write_grid(path: Path, rows: int) -> None:
    """The file for `--grid`."""
    path.write_text(GRID.format(copies=1 + len(cells_of(rows)) // len(STUDY_IDS)))


def rows_of(rows: int, shift: int = 0) -> dict[str, Any]:
    """A run of so many rows; with a `shift`, every seed has the figures of another one, as a second run has others."""
    run = load(BASELINE)
    by_case = {(row["extra_info"]["cell"], row["extra_info"]["seeds"]["seed"]): row for row in run["benchmarks"]}
    made = []
    for name in cells_of(rows):
        cell, _, copy = name.partition("x")
        for seed in range(SEEDS):
            made.append(_copied(by_case[cell, (seed + shift) % SEEDS], name, seed, int(copy or 0)))
    return run | {"benchmarks": made}


def _copied(row: Row, cell: str, seed: int, copy: int) -> Row:
    new = deepcopy(row)
    record = new["extra_info"]
    backbone, task, method = cell.split("_")
    param = f"{cell}-seed{seed}"
    new |= {"name": f"test_finetune[{param}]", "fullname": f"benchmarks/test_finetune.py::test_finetune[{param}]"}
    new |= {"param": param, "params": new["params"] | {"backbone": backbone, "task": task, "method": method, "seed": seed}}
    record |= {"cell": cell, "method": method, "seeds": record["seeds"] | {"seed": seed}}
    record["scores"] = {name: points - copy * NUDGE for name, points in record["scores"].items()}
    record["training"]["losses"] = [loss + copy * NUDGE for loss in record["training"]["losses"]]
    if record["evaluation"]["loss"] is not None:
        record["evaluation"]["loss"] += copy * NUDGE
    return new


def write_run(path: Path, rows: int, shift: int = 0) -> None:
    """A run's file, with its examples beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows_of(rows, shift)))
    examples = path.parent / "examples"
    if not examples.exists():
        examples.symlink_to(BASELINE.parent / "examples")


def names(rows: int) -> Sequence[str]:
    """Options of pytest that select the cells of so many rows."""
    return [f"--cells={','.join(cells_of(rows))}", f"--seeds=0-{SEEDS - 1}"]
