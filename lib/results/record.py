"""The record of one cell: a versioned, plain-JSON dictionary, described by `reports/schema.json`.

It *is* pytest-benchmark's `extra_info`. Scores are points, 0-100; units stand in the names; None where nothing was measured.
"""

import math
from dataclasses import asdict
from typing import Any

from lib.data.splits import SPLIT_SEED
from lib.grid.cells import Cell
from lib.machine import versions

SCHEMA_VERSION = 2

Record = dict[str, Any]


def new_record(cell: Cell) -> Record:
    """What is known of a cell before it runs; every measurement is still None."""
    profile = cell.profile
    return {
        "schema_version": SCHEMA_VERSION,
        "cell": cell.id,
        "profile": profile.id,
        "backbone": cell.backbone.id,
        "task": cell.task.id,
        "method": cell.method.id,
        "main_score": cell.task.main_score,
        "recipe": plain(asdict(cell.recipe) | {"quantization": cell.quantization and asdict(cell.quantization)}),
        "limits": {f"{split}_rows": profile.cap(cell.task.id, split) for split in ("train", "validation", "test")}
        | {"own_test": profile.own_test},
        "seeds": {"seed": profile.seed, "split_seed": SPLIT_SEED},
        "versions": versions(),
        "device": None,
        "data": None,
        "model": None,
        "parameters": None,
        "training": None,
        "evaluation": None,
        "scores": {},
        "examples": None,
        "memory": None,
        "throughput": None,
        "flops": None,
        "audits": [],
        "bounds": {},
        "missed": [],
        "outcome": "unfinished",
    }


def plain(value: Any) -> Any:
    """The same value as JSON can hold it: numbers as int and float, sequences as lists, not-a-number as None.

    pytest-benchmark writes anything else as the string "UNSERIALIZABLE[...]" without a word.

    Raises:
        TypeError: for a value that has no plain form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return plain(value.item())
    raise TypeError(f"a record cannot hold {value!r} of {type(value).__name__}")
