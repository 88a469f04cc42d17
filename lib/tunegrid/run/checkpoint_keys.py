"""Finds which tensor of a checkpoint a model's weight is, and its checksum.

A model and its checkpoint name one tensor differently: PEFT and heads put parts in front. So names are compared from the end.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tunegrid.run.checksums import Checksum, checksums

NameParts = tuple[str, ...]
# Parts of names that a loaded model has otherwise: old BERT checkpoints say gamma and beta, and BERT2BERT's cross-attention
# starts from the self-attention of its layer.
RENAMED = {"gamma": "weight", "beta": "bias", "crossattention": "attention"}


@cache
def checkpoint_checksums(files: tuple[Path, ...], dtype: torch.dtype) -> Mapping[str, Checksum]:
    """Checksums of all tensors of a checkpoint by name, in the type that the model loads them in."""
    tensors = {name: tensor.to(dtype) for path in files for name, tensor in load_file(path).items()}
    return dict(zip(tensors, checksums(tensors.values()), strict=True))


def matching_keys(name: str, files: tuple[Path, ...]) -> list[str]:
    """The checkpoint's tensors whose names have the longest end in common with this one, of two parts at least."""
    stored, own = keys_by_ending(files), parts_of_name(name)
    return next((stored[own[i:]] for i in range(len(own) - 1) if own[i:] in stored), [])


@cache
def keys_by_ending(files: tuple[Path, ...]) -> Mapping[NameParts, list[str]]:
    """The names of a checkpoint's tensors, by every end that they have."""
    endings: dict[NameParts, list[str]] = defaultdict(list)
    for name in files_by_key(files):
        parts = parts_of_name(name)
        for i in range(len(parts)):
            endings[parts[i:]].append(name)
    return dict(endings)


def parts_of_name(name: str) -> NameParts:
    """A dotted name in parts, without what PEFT puts in between."""
    return tuple(RENAMED.get(part, part) for part in name.split(".") if part != "base_layer")


@cache
def files_by_key(files: tuple[Path, ...]) -> Mapping[str, Path]:
    """In which file each tensor of a checkpoint is."""
    found: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found
