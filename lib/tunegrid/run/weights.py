"""Checksums of weights, the files and keys of the checkpoint that they come from, and which base an adapter lies on.

A model and its checkpoint name one tensor differently: PEFT and heads put parts in front. So names are compared from the end.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
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

Checksum = tuple[int, int]
INTEGERS = {4: torch.int32, 2: torch.int16}  # by bytes an element; any other size is read byte by byte
# Parts of names that a loaded model has otherwise: old BERT checkpoints say gamma and beta, and BERT2BERT's cross-attention
# starts from the self-attention of its layer.
RENAMED = {"gamma": "weight", "beta": "bias", "crossattention": "attention"}


def checksums(tensors: Iterable[Tensor]) -> list[Checksum]:
    """A checksum of each tensor: sums of all its bits taken as integers, and of every other one; equal bits, equal sums.

    A checksum is no cryptographic hash. It tells trained weights from unchanged ones, on the tensor's device, without a copy.
    """
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    bits = [one.view(INTEGERS.get(one.element_size(), torch.uint8)) for one in flat]
    sums = [torch.stack([one.sum(dtype=torch.int64), one[::2].sum(dtype=torch.int64)]) for one in bits]
    return [(first, second) for first, second in torch.stack(sums).tolist()] if sums else []


def model_checksums(model: nn.Module) -> dict[str, Checksum]:
    """A checksum of every parameter, by name."""
    named = dict(model.named_parameters())
    return dict(zip(named, checksums(named.values()), strict=True))


# The checkpoint


def weight_files(cell: Cell) -> list[Path]:
    """The safetensors that transformers loads: one file, or else all that the index names."""
    source, pin = checkpoint_of(cell.backbone, cell.profile)
    optional = {**pin, "_raise_exceptions_for_missing_entries": False}
    if single := hf.utils.cached_file(source, hf.utils.SAFE_WEIGHTS_NAME, **optional):
        return [Path(single)]
    index = hf.utils.cached_file(source, hf.utils.SAFE_WEIGHTS_INDEX_NAME, **optional)
    return [Path(name) for name in hf.utils.hub.get_checkpoint_shard_files(source, index, **pin)[0]] if index else []


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
    checkpoint = f"random weights, shape of {cell.backbone.checkpoint}"
    if not cell.profile.random_weights:
        source, _ = checkpoint_of(cell.backbone, cell.profile)
        checkpoint = Path(source).name if Path(source).is_dir() else source
    return ModelRecord(
        checkpoint=checkpoint,
        fingerprint=checkpoint_fingerprint(cell),
        architecture=getattr(cell.head.architecture, "__name__", str(cell.head.architecture)),  # a class or a name
        adapted_modules=list(cell.head.adapted_modules),
    )


def checkpoint_fingerprint(cell: Cell) -> str | None:
    """Sixteen hex digits over the weight files of a local folder, or the hub's commit; None for random weights."""
    if cell.profile.random_weights:
        return None
    if cell.profile.checkpoint_root is None:
        find = hf.utils.hub.extract_commit_hash
        return cell.backbone.revision or next((found for path in weight_files(cell) if (found := find(str(path), None))), None)
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
    stored, own = _keys_by_ending(files), _parts_of(name)
    return next((stored[own[i:]] for i in range(len(own) - 1) if own[i:] in stored), [])


@cache
def _keys_by_ending(files: tuple[Path, ...]) -> Mapping[tuple[str, ...], list[str]]:
    endings: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in files_by_key(files):
        parts = _parts_of(name)
        for i in range(len(parts)):
            endings[parts[i:]].append(name)
    return dict(endings)


def _parts_of(name: str) -> tuple[str, ...]:
    """A dotted name in parts, without what PEFT puts in between."""
    return tuple(RENAMED.get(part, part) for part in name.split(".") if part != "base_layer")


# The base below an adapter

# A layer that was packed to 4 bits has three sets of numbers: the packed ones; these unpacked, each on one of sixteen levels;
# and the checkpoint's own, which packed give the same 4 bits.
BaseKind = Literal["packed", "unpacked", "original"]  # packed to 4 bits; these 4 bits as numbers; the checkpoint's own numbers
ANY: frozenset[BaseKind] = frozenset(("packed", "unpacked", "original"))
EITHER: frozenset[BaseKind] = frozenset(("unpacked", "original"))  # a checkpoint may have numbers on the levels, too


def bases_below(trained: Any, model: Any) -> frozenset[BaseKind]:
    """What the base below another model's adapter may be; if that is merged, its layers without an adapter tell.

    Args:
        trained: an adapter over a packed base.
        model: the same adapter over some base, or that base with the adapter merged.
    """
    kinds, base = ANY, model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = {name for name, layer in trained.get_base_model().named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in packed_layers(trained).items():
        other = base.get_submodule(name)
        if isinstance(other, BaseTunerLayer):
            kinds &= _kinds(layer, other.get_base_layer())
        elif name not in adapted:
            kinds &= _kinds(layer, other)
    return kinds


def _kinds(layer: Any, other: Any) -> frozenset[BaseKind]:
    """What the second layer may be of the first one."""
    levels = numbers_of(layer.weight)
    if isinstance(other, bnb.nn.Linear4bit):
        return frozenset(("packed",)) if torch.equal(levels, numbers_of(other.weight)) else frozenset()
    weight = weight_of(other).to(levels)
    if torch.equal(levels, weight):
        return EITHER
    return frozenset(("original",)) if torch.equal(levels, numbers_of(packed(weight, layer))) else frozenset()


def the_one(bases: frozenset[BaseKind]) -> BaseKind | None:
    """The one base that it is; None if it is another one, or nothing tells."""
    return "unpacked" if bases == EITHER else next(iter(bases)) if len(bases) == 1 else None


def packed_layers(model: Any) -> dict[str, Any]:
    """The 4-bit layers below an adapter, by the names that they have without it."""
    layers = model.get_base_model().named_modules()
    return {name.removesuffix(".base_layer"): layer for name, layer in layers if isinstance(layer, bnb.nn.Linear4bit)}


def numbers_of(parameter: Any) -> Tensor:
    """A weight as numbers, if it is packed to 4 bits, too."""
    state = getattr(parameter, "quant_state", None)
    numbers: Tensor = parameter.detach() if state is None else bnb.functional.dequantize_4bit(parameter.data, state)
    return numbers


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
