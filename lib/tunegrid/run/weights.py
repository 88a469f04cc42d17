"""Finds the weight files of a loaded checkpoint, and their fingerprint."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers as hf

from tunegrid.grid.cells import Cell
from tunegrid.grid.names import within
from tunegrid.record.parts import ModelRecord
from tunegrid.record.record import architecture_name
from tunegrid.run.build import checkpoint_of
from tunegrid.run.checkpoint_keys import files_by_key

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")  # how the hub's cache names a commit


def weight_files(cell: Cell) -> list[Path]:
    """The safetensors that transformers loads: one file, or else all that the index names."""
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    single = _file(source, WEIGHTS, pin)
    if single:
        return [single]
    index = _file(source, INDEX, pin)
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index else []
    return [path for path in (_file(source, name, pin) for name in names) if path]


def lacking_modules(cell: Cell) -> list[str]:
    """The head's optional modules that the checkpoint does not hold; they start from random."""
    if not cell.head.optional_modules:
        return []
    names = files_by_key(tuple(weight_files(cell)))
    return [module for module in cell.head.optional_modules if not any(within(name, [module]) for name in names)]


def _file(source: str, name: str, pin: Mapping[str, Any]) -> Path | None:
    """A file of a local folder, or of the hub's cache; None where there is none."""
    path = hf.utils.cached_file(source, name, _raise_exceptions_for_missing_entries=False, **pin)
    return Path(path) if path else None


def model_record(cell: Cell) -> ModelRecord:
    """Which weights the cell started from, and the class they were loaded into."""
    if cell.profile.random_weights:
        checkpoint = f"random weights, shape of {cell.backbone.checkpoint}"
    else:
        source, _ = checkpoint_of(cell.backbone, cell.profile)
        checkpoint = Path(source).name if Path(source).is_dir() else source
    return ModelRecord(
        checkpoint=checkpoint,
        fingerprint=checkpoint_fingerprint(cell),
        architecture=architecture_name(cell.head),
        adapted_modules=list(cell.head.adapted_modules),
    )


def checkpoint_fingerprint(cell: Cell) -> str | None:
    """Sixteen hex digits over the weight files of a local folder, or the hub's commit; None for random weights."""
    if cell.profile.random_weights:
        return None
    if cell.profile.checkpoint_root is None:
        return cell.backbone.revision or next((commit for path in weight_files(cell) if (commit := _commit(path))), None)
    digest = hashlib.sha256()
    for path in weight_files(cell):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _commit(path: Path) -> str | None:
    """The hub's commit of a cached file; None where its path does not tell."""
    match = SNAPSHOT.search(str(path))
    return match.group(1) if match else None
