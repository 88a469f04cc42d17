"""Audits of what was built: weights, heads, adapters, quantization."""

import math
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lib.grid.cells import Cell
from lib.grid.methods import TOKEN_ROWS, Answer
from lib.grid.names import within
from lib.run.audits.evidence import Evidence
from lib.run.build import base_type
from lib.run.fingerprints import Mark, marks
from lib.run.weights import weight_files

BLOCK = 64  # weights that share a scale in NF4 (Dettmers et al. 2023, section 3)
LAYERS = 4  # whose packed weights are held against the checkpoint
# Between packed weights and the checkpoint's rounded here: what double quantization rounds in the scales, at most 0.6 % on the
# micro backbones. Blocks of 128 are at least 8 % off, FP4 14 %, another layer's weights 100 %.
ROUNDED = 0.03
# Appendix E of the same paper.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def checkpoint_loaded(evidence: Evidence) -> Answer:
    """Every pretrained tensor that is neither packed nor rewritten started as one of the checkpoint's, bit for bit."""
    if evidence.cell.profile.random_weights or evidence.cell.profile.perturbation is not None:
        return None
    names, stored = checkpoint_marks(tuple(weight_files(evidence.cell)), base_type(evidence.cell))
    lacking = [module for module in evidence.cell.head.optional_modules if not any(within(name, [module]) for name in names)]
    started = [name for name in evidence.trainer.before if _pretrained(evidence, name) and not within(name, lacking)]
    random = sorted(name for name in started if evidence.trainer.before[name] not in stored)
    if random or not started:
        return False, f"{len(random)} of {len(started)} pretrained tensors are not the checkpoint's: {', '.join(random[:3])}"
    return True, f"{len(started)} tensors are the checkpoint's" + (f"; it lacks {', '.join(lacking)}" if lacking else "")


@cache
def checkpoint_marks(files: tuple[Path, ...], dtype: torch.dtype) -> tuple[frozenset[str], frozenset[Mark]]:
    """Names of all tensors of a checkpoint, and their marks in the type that the model loads them in."""
    tensors = {name: tensor.to(dtype) for path in files for name, tensor in load_file(path).items()}
    return frozenset(tensors), frozenset(marks(tensors.values()))


def _pretrained(evidence: Evidence, name: str) -> bool:
    """Whether a parameter should be a tensor of the checkpoint: not new, packed, rewritten or grown by a token."""
    head, parameter = evidence.cell.head, evidence.trainer.parameters[name]
    if parameter.dtype is not base_type(evidence.cell) or name in evidence.own:
        return False
    if within(name, head.new_modules + head.adapted_modules) or within(name, evidence.cell.method.rewritten(evidence.cell)):
        return False
    return not (head.new_token and parameter.shape[0] == len(evidence.codec.tokenizer))


def heads_trainable(evidence: Evidence) -> Answer:
    """Every module that pretraining never saw trains: in full, or by an adapter where the head says so."""
    head, adapts = evidence.cell.head, evidence.cell.method.adapts
    trained = {name for name, p in evidence.trainer.parameters.items() if p.requires_grad}
    adapted = trained & evidence.own if adapts else trained
    frozen = [module for module in head.new_modules if not any(within(name, [module]) for name in trained)]
    frozen += [module for module in head.adapted_modules if not any(within(name, [module]) for name in adapted)]
    if head.new_token and adapts and not any(TOKEN_ROWS in name for name in trained):
        frozen.append(head.new_token)
    new = [*head.new_modules, *head.adapted_modules, *([head.new_token] if head.new_token else [])]
    if frozen:
        return False, f"frozen at their random start: {', '.join(frozen)}"
    return True, ", ".join(new) or "none new"


def adapters_where_declared(evidence: Evidence) -> Answer:
    """Adapters are on all of the method's target layers and nowhere else, and have the declared facts."""
    method, cell = evidence.cell.method, evidence.cell
    layers = {name: module for name, module in evidence.model.named_modules() if is_adapted(module)}
    targets = method.targets(cell)
    if not targets:
        kind = "has no target layers" if method.adapts else "trains in full"
        return not layers, f"{len(layers)} adapters in a model that {kind}"
    new = cell.head.new_modules  # PEFT never adapts what it trains in full
    wanted = {name for name, _ in _base_layers(evidence.model) if _ends_in(name, targets) and not within(name, new)}
    if set(layers) != wanted:
        odd = sorted(wanted ^ set(layers))
        named = f", {odd[0]} among the differences" if odd else ""
        return False, f"{len(layers)} adapters where {len(wanted)} layers are targets{named}"
    shown, declared = {method.layer_facts(layer) for layer in layers.values()}, method.declared_facts(cell)
    facts = " and ".join(", ".join(some) for some in sorted(shown) if some)
    detail = f"{len(layers)} adapters{f': {facts}' if facts else ''}"
    return shown == {declared}, detail if shown == {declared} else f"{detail}; declared: {', '.join(declared)}"


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT's tuner wraps this layer. The trained rows of an embedding do not count as an adapter."""
    return isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)


def _ends_in(name: str, targets: tuple[str, ...]) -> bool:
    """PEFT's rule for target modules."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _base_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The base's modules by name, taken out of the adapters around them; what an adapter adds is left out."""
    adapter: str | None = None
    for name, module in model.named_modules():
        if adapter is not None and name.startswith(adapter):
            continue
        adapter = f"{name}." if is_adapted(module) else None
        yield name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def quantized_as_declared(evidence: Evidence) -> Answer:
    """A quantized base is packed as the method declares, exactly the linear layers that may be; no other model has any."""
    packed = [m for m in evidence.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    eight = sum(isinstance(m, bnb.nn.Linear8bitLt) for m in evidence.model.modules())
    wanted = evidence.cell.quantization
    if wanted is None:
        return not packed and not eight, f"{len(packed) + eight} quantized layers"
    kept = {*evidence.cell.head.new_modules, *evidence.cell.head.tied_modules, *kept_in_fp32(evidence.model)}
    linear = [(name, layer) for name, layer in _base_layers(evidence.model) if isinstance(layer, nn.Linear | Conv1D)]
    odd = [name for name, layer in linear if within(name, kept) == isinstance(layer, bnb.nn.Linear4bit)]
    kinds = {_packing(layer) for layer in packed}
    right = kinds == {(wanted.bnb_4bit_quant_type, wanted.bnb_4bit_use_double_quant, 0.5, BLOCK)}
    if eight or odd or not right:
        return (
            False,
            f"{len(packed)} packed as {sorted(kinds)}, {eight} to 8 bits, {len(odd)} wrongly packed or left plain {odd[:2]}",
        )
    kind = (
        f"{wanted.bnb_4bit_quant_type.upper()} with {'double' if wanted.bnb_4bit_use_double_quant else 'single'} quantization"
    )
    return True, f"{len(packed)} layers, {kind}, half a byte a weight, blocks of {BLOCK}"


def packed_from_checkpoint(evidence: Evidence) -> Answer:
    """Packed weights, unpacked again, are the checkpoint's as rounded to NF4; those of some layers, found by name."""
    cell = evidence.cell
    declared = cell.quantization and cell.quantization.bnb_4bit_quant_type == "nf4"
    if not declared or cell.profile.random_weights:
        return None
    new = (*cell.head.new_modules, *cell.head.adapted_modules, *cell.method.rewritten(cell))
    packed = {name: m for name, m in _base_layers(evidence.model) if isinstance(m, bnb.nn.Linear4bit) and not within(name, new)}
    sampled = Random(0).sample(sorted(packed), min(LAYERS, len(packed)))
    gaps = {name: _rounding_gap(packed[name].weight, name, cell) for name in sampled}
    odd = [f"{name} ({gap:.1%})" for name, gap in gaps.items() if gap > ROUNDED]
    return not odd, f"{len(gaps)} of {len(packed)} layers" + (
        f"; other weights than the checkpoint's: {', '.join(odd[:2])}" if odd else ""
    )


def _rounding_gap(weight: Any, name: str, cell: Cell) -> float:
    """How far a packed weight (out, in) is from its checkpoint's tensor, rounded here, in units of the tensor's norm."""
    ours = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float().cpu()
    tensors = [tensor for one in _of_name(name, weight_files(cell)) for tensor in (one, one.T) if tensor.shape == ours.shape]
    gaps = [(ours - nf4(tensor.to(base_type(cell)).float())).norm() / tensor.float().norm() for tensor in tensors]
    return float(min(gaps, default=torch.tensor(math.inf)))


def _of_name(name: str, files: list[Path]) -> list[Tensor]:
    """The checkpoint's matrices whose names have the most last parts in common with a layer's."""
    stored = [(key, path) for path in files for key in _keys(path) if key.endswith(".weight")]
    common = [_common_end(key.removesuffix(".weight"), name) for key, _ in stored]
    alike = [one for one, length in zip(stored, common, strict=True) if length == max(common)]
    return [tensor for key, path in alike if (tensor := _read(path, key)).ndim == 2]


def _keys(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def _common_end(one: str, other: str) -> int:
    """How many last parts two dotted names share."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def nf4(weight: Tensor) -> Tensor:
    """A weight rounded to NF4: in blocks, to the nearest of 16 levels times the block's largest absolute value."""
    blocks = weight.reshape(-1, BLOCK)  # row by row
    largest = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4_LEVELS)
    return (levels[torch.bucketize(blocks / largest, (levels[1:] + levels[:-1]) / 2)] * largest).reshape(weight.shape)


def kept_in_fp32(model: nn.Module) -> set[str]:
    """Layers that transformers keeps in fp32 whatever type is asked for, as T5's wo."""
    return {name for m in model.modules() for name in getattr(m, "_keep_in_fp32_modules", None) or ()}


def _packing(layer: Any) -> tuple[str, bool, float, int]:
    state = layer.weight.quant_state
    if state is None:
        return "not quantized", False, 4.0, 0
    return state.quant_type, bool(state.nested), layer.weight.numel() / math.prod(state.shape), state.blocksize
