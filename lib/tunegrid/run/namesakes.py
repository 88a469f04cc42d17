"""Which tensor of a checkpoint a model's weight is. In: its name, and the checkpoint's files. Out: namesakes, and their marks.

A model and its checkpoint name one tensor differently: PEFT and heads put parts in front. So names are compared from the end.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tunegrid.run.fingerprints import Mark, marks

Parts = tuple[str, ...]
# Parts of names that a loaded model has otherwise: old BERT checkpoints say gamma and beta, and BERT2BERT's cross-attention
# starts from the self-attention of its layer.
RENAMED = {"gamma": "weight", "beta": "bias", "crossattention": "attention"}


@cache
def checkpoint_marks(files: tuple[Path, ...], dtype: torch.dtype) -> Mapping[str, Mark]:
    """Marks of all tensors of a checkpoint by name, in the type that the model loads them in."""
    tensors = {name: tensor.to(dtype) for path in files for name, tensor in load_file(path).items()}
    return dict(zip(tensors, marks(tensors.values()), strict=True))


def namesakes(name: str, files: tuple[Path, ...]) -> list[str]:
    """The checkpoint's tensors whose names have the longest end in common with this one, of two parts at least."""
    stored, own = by_ending(files), parts_of(name)
    return next((stored[own[i:]] for i in range(len(own) - 1) if own[i:] in stored), [])


@cache
def by_ending(files: tuple[Path, ...]) -> Mapping[Parts, list[str]]:
    """The names of a checkpoint's tensors, by every end that they have."""
    endings: dict[Parts, list[str]] = defaultdict(list)
    for name in places(files):
        parts = parts_of(name)
        for i in range(len(parts)):
            endings[parts[i:]].append(name)
    return dict(endings)


def parts_of(name: str) -> Parts:
    """A dotted name in parts, without what PEFT puts in between."""
    return tuple(RENAMED.get(part, part) for part in name.split(".") if part != "base_layer")


@cache
def places(files: tuple[Path, ...]) -> Mapping[str, Path]:
    """In which file each tensor of a checkpoint is."""
    file_of: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            file_of |= dict.fromkeys(file.keys(), path)
    return file_of
