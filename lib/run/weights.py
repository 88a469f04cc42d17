"""The weight files behind a model. In: a `Cell` whose checkpoint was loaded. Out: its safetensors here, and what names them."""

import hashlib
import json
import re
from pathlib import Path

import transformers as hf

from lib.grid.cells import Cell
from lib.run.build import checkpoint_of

INDEX = "model.safetensors.index.json"  # of weights in several files
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")  # how the hub's cache names a commit


def weight_files(cell: Cell) -> list[Path]:
    """The checkpoint's safetensors on this machine, after it was loaded."""
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    if cell.profile.checkpoint_root is not None:
        return sorted(Path(source).glob("*.safetensors"))
    index = hf.utils.cached_file(source, INDEX, _raise_exceptions_for_missing_entries=False, **pin)
    names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values())) if index else ["model.safetensors"]
    return [Path(hf.utils.cached_file(source, name, **pin)) for name in names]


def checkpoint_fingerprint(cell: Cell) -> str | None:
    """Sixteen hex digits over the weight files of a local folder, or the hub's commit; None for random weights."""
    if cell.profile.random_weights:
        return None
    if cell.profile.checkpoint_root is None:
        return cell.backbone.revision or _commit(weight_files(cell)[0])
    digest = hashlib.sha256()
    for path in weight_files(cell):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _commit(path: Path) -> str | None:
    """The commit of the hub that a cached file is of; None where its path does not say."""
    match = SNAPSHOT.search(str(path))
    return match.group(1) if match else None
