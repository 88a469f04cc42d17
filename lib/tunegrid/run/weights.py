"""Checksums of weights, and the files and keys of the checkpoint that they come from.

A model and its checkpoint name one tensor differently: PEFT and heads put parts in front. So names are compared from the end.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import bitsandbytes as bnb
import torch
import transformers as hf
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunegrid.grid.backbones import checkpoint_of, within
from tunegrid.grid.cells import Cell
from tunegrid.record.parts import ModelRecord
from tunegrid.record.record import architecture_name

Checksum = tuple[int, int]
INTEGERS = {4: torch.int32, 2: torch.int16}  # by bytes an element; any other size is read byte by byte
NameParts = tuple[str, ...]
# Parts of names that a loaded model has otherwise: old BERT checkpoints say gamma and beta, and BERT2BERT's cross-attention
# starts from the self-attention of its layer.
RENAMED = {"gamma": "weight", "beta": "bias", "crossattention": "attention"}
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")  # how the hub's cache names a commit


def checksums(tensors: Iterable[Tensor]) -> list[Checksum]:
    """A checksum of each tensor: sums of all its bits taken as integers, and of every other one; equal bits, equal sums.

    A checksum is no cryptographic hash. It tells trained weights from unchanged ones, on the tensor's device, without a copy.
    """
    sums = [_sums(tensor) for tensor in tensors]
    pairs: list[list[int]] = torch.stack(sums).tolist() if sums else []
    return [(first, second) for first, second in pairs]


def _sums(tensor: Tensor) -> Tensor:
    bits = tensor.detach().reshape(-1)
    bits = bits.view(INTEGERS.get(bits.element_size(), torch.uint8))
    return torch.stack([bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)])


def model_checksums(model: nn.Module) -> dict[str, Checksum]:
    """A checksum of every parameter, by name."""
    named = dict(model.named_parameters())
    return dict(zip(named, checksums(named.values()), strict=True))


def weight_files(cell: Cell) -> list[Path]:
    """The safetensors that transformers loads: one file, or else all that the index names."""
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    single = _file(source, WEIGHTS, pin)
    if single:
        return [single]
    index = _file(source, INDEX, pin)
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) if index else []
    return [path for path in (_file(source, name, pin) for name in names) if path]


def _file(source: str, name: str, pin: Mapping[str, Any]) -> Path | None:
    """A file of a local folder, or of the hub's cache; None where there is none."""
    path = hf.utils.cached_file(source, name, _raise_exceptions_for_missing_entries=False, **pin)
    return Path(path) if path else None


@cache
def files_by_key(files: tuple[Path, ...]) -> Mapping[str, Path]:
    """In which file each tensor of a checkpoint is."""
    found: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def lacking_modules(cell: Cell) -> list[str]:
    """The head's optional modules that the checkpoint does not hold; they start from random."""
    if not cell.head.optional_modules:
        return []
    names = files_by_key(tuple(weight_files(cell)))
    return [module for module in cell.head.optional_modules if not any(within(name, [module]) for name in names)]


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
        if cell.backbone.revision:
            return cell.backbone.revision
        matches = [SNAPSHOT.search(str(path)) for path in weight_files(cell)]
        return next((match[1] for match in matches if match), None)
    digest = hashlib.sha256()
    for path in weight_files(cell):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


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


# A layer that was packed to 4 bits has three sets of numbers: the packed ones; these unpacked, each on one of sixteen levels;
# and the checkpoint's own, which packed give the same 4 bits.
BaseKind = Literal["packed", "unpacked", "original"]  # packed to 4 bits; these 4 bits as numbers; the checkpoint's own numbers
ANY: frozenset[BaseKind] = frozenset(("packed", "unpacked", "original"))
EITHER: frozenset[BaseKind] = frozenset(("unpacked", "original"))


def bases_below(trained: nn.Module, model: Any) -> frozenset[BaseKind]:
    """What the base below another model's adapter may be; where that is merged, its layers without an adapter tell.

    Args:
        trained: an adapter over a packed base.
        model: the same adapter over some base, or that base with the adapter merged.
    """
    return ANY.intersection(*(_kinds(layer, other) for layer, other in _pairs(trained, model)))


def the_one(bases: frozenset[BaseKind]) -> BaseKind | None:
    """The one base that it is; None where it is another one, or nothing tells."""
    return "unpacked" if bases == EITHER else next(iter(bases)) if len(bases) == 1 else None


def packed_layers(model: Any) -> dict[str, Any]:
    """The 4-bit layers below an adapter, by the names that they have without it."""
    layers = model.get_base_model().named_modules()
    return {name.removesuffix(".base_layer"): layer for name, layer in layers if isinstance(layer, bnb.nn.Linear4bit)}


def unpacked(layer: Any) -> Tensor:
    """A 4-bit layer's weight (out, in) as numbers."""
    weight: Tensor = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def packed(weight: Tensor, like: Any) -> Any:
    """A weight (out, in), packed with the settings of a 4-bit layer: the parameter that such a layer holds."""
    settings = {
        name: getattr(like.weight, name) for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage")
    }
    return bnb.nn.Params4bit(weight.contiguous(), requires_grad=False, **settings).to(weight.device)


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight (out, in); GPT-2's layers have it the other way round."""
    weight: Tensor = layer.weight.data  # type: ignore[assignment] # it is a linear layer
    return weight.T if isinstance(layer, Conv1D) else weight


def _pairs(trained: Any, model: Any) -> Iterator[tuple[Any, nn.Module]]:
    """Each packed layer and the one in its place, but for layers that an adapter was merged into."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = {name for name, layer in trained.get_base_model().named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in packed_layers(trained).items():
        other = base.get_submodule(name)
        if isinstance(other, BaseTunerLayer):
            yield layer, other.get_base_layer()
        elif name not in adapted:
            yield layer, other


def _kinds(layer: Any, other: nn.Module) -> frozenset[BaseKind]:
    """What the second layer may be of the first one. A checkpoint may have numbers on the levels, too."""
    levels = unpacked(layer)
    if isinstance(other, bnb.nn.Linear4bit):
        return frozenset(("packed",)) if torch.equal(levels, unpacked(other)) else frozenset()
    weight = weight_of(other).to(levels)
    if torch.equal(levels, weight):
        return EITHER
    again = packed(weight, layer)
    return frozenset(("original",)) if torch.equal(levels, _numbers(again)) else frozenset()


def _numbers(parameter: Any) -> Tensor:
    numbers: Tensor = bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state)
    return numbers
