"""Audits of what was built: weights, heads, adapters, quantization."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lib.grid.names import within
from lib.run.audits.evidence import Answer, Evidence
from lib.run.build import weight_files
from lib.run.fingerprints import Mark, marks


def checkpoint_loaded(evidence: Evidence) -> Answer:
    """Every pretrained tensor that is stored plainly started as one of the checkpoint's, bit for bit."""
    if evidence.cell.profile.random_weights:
        return None
    names, stored = checkpoint_marks(tuple(weight_files(evidence.cell)))
    lacking = [module for module in evidence.cell.head.optional_modules if not any(within(name, [module]) for name in names)]
    started = [name for name in evidence.trainer.before if _pretrained(evidence, name) and not within(name, lacking)]
    random = sorted(name for name in started if evidence.trainer.before[name] not in stored)
    if random or not started:
        return False, f"{len(random)} of {len(started)} pretrained tensors are not the checkpoint's: {', '.join(random[:3])}"
    return True, f"{len(started)} tensors are the checkpoint's" + (f"; it lacks {', '.join(lacking)}" if lacking else "")


@cache
def checkpoint_marks(files: tuple[Path, ...]) -> tuple[frozenset[str], frozenset[Mark]]:
    """Names and marks, as fp32, of all tensors of a checkpoint."""
    tensors = {name: tensor.float() for path in files for name, tensor in load_file(path).items()}
    return frozenset(tensors), frozenset(marks(tensors.values()))


def _pretrained(evidence: Evidence, name: str) -> bool:
    """Whether a parameter came from the checkpoint as it stands there: not new, not packed, not grown by a token."""
    head = evidence.cell.head
    parameter = evidence.trainer.parameters[name]
    if parameter.dtype != torch.float32 or "lora_" in name or "trainable_tokens_delta" in name:
        return False
    if within(name, head.new_modules + head.adapted_modules):
        return False
    return not (head.new_token and parameter.shape[0] == len(evidence.codec.tokenizer))


def heads_trainable(evidence: Evidence) -> Answer:
    """Every module that pretraining never saw trains: in full, or by an adapter where the study says so."""
    head, named = evidence.cell.head, evidence.trainer.parameters
    trained = {name for name, p in named.items() if p.requires_grad}
    frozen = [module for module in head.new_modules if not any(within(name, [module]) for name in trained)]
    frozen += [m for m in head.adapted_modules if not any(within(name, [m]) and _is_lora(evidence, name) for name in trained)]
    if head.new_token and evidence.cell.method.adapts and not any("trainable_tokens_delta" in name for name in trained):
        frozen.append(head.new_token)
    new = [*head.new_modules, *head.adapted_modules, *([head.new_token] if head.new_token else [])]
    return (
        (False, f"frozen at their random start: {', '.join(frozen)}") if frozen else (True, f"{', '.join(new) or 'none new'}")
    )


def _is_lora(evidence: Evidence, name: str) -> bool:
    return "lora_" in name or not evidence.cell.method.adapts


def adapters_where_declared(evidence: Evidence) -> Answer:
    """Adapters sit on the recipe's target modules, on all of them and nowhere else, with its rank and scale."""
    adapter = evidence.cell.recipe.adapter
    layers: dict[str, Any] = {name: m for name, m in evidence.model.named_modules() if _adapter_rank(m) is not None}
    if adapter is None:
        return not layers, f"{len(layers)} adapters in a model that trains in full"
    shapes = {(_adapter_rank(m), m.scaling["default"]) for m in layers.values()}
    wanted = {name for name in _linear_layers(evidence.model) if name.rsplit(".", 1)[-1] in adapter.target_modules}
    if set(layers) != wanted:
        odd = sorted(wanted ^ set(layers))
        return False, f"{len(layers)} adapters where {len(wanted)} layers are targets, {odd[0]} among the differences"
    right = shapes == {(adapter.r, adapter.lora_alpha / adapter.r)}
    return right, f"{len(layers)} of rank and scale {sorted(shapes)}"


def _adapter_rank(module: Any) -> int | None:
    found = getattr(module, "lora_A", {})
    return int(found["default"].weight.shape[0]) if "default" in found else None


def _linear_layers(model: nn.Module) -> Iterator[str]:
    """Names of linear layers, under the adapter's name where one wraps them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and "lora_" not in name:  # Linear4bit is a Linear
            yield name.removesuffix(".base_layer")


def quantized_as_declared(evidence: Evidence) -> Answer:
    """QLoRA's base is packed to NF4 with double quantization, every linear layer that may be; other models not at all."""
    packed = {n: m for n, m in evidence.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    eight = sum(isinstance(m, bnb.nn.Linear8bitLt) for m in evidence.model.modules())
    wanted = evidence.cell.quantization
    if wanted is None:
        return not packed and not eight, f"{len(packed) + eight} quantized layers"
    kept = {*evidence.cell.head.new_modules, *evidence.cell.head.tied_modules, *kept_in_fp32(evidence.model)}
    plain = [
        n for n in _linear_layers(evidence.model) if not within(n, kept) and f"{n}.base_layer" not in packed and n not in packed
    ]
    kinds = {_packing(m) for m in packed.values()}
    right = kinds == {(wanted.bnb_4bit_quant_type, wanted.bnb_4bit_use_double_quant, 0.5)}
    if eight or plain or not right:
        return False, f"{len(packed)} packed as {sorted(kinds)}, {eight} to 8 bits, {len(plain)} left plain {plain[:2]}"
    return True, f"{len(packed)} layers, NF4 with double quantization, half a byte a weight"


def kept_in_fp32(model: nn.Module) -> set[str]:
    """What transformers keeps in fp32 whatever it is asked for: T5's wo."""
    return {name for m in model.modules() for name in getattr(m, "_keep_in_fp32_modules", None) or ()}


def _packing(layer: Any) -> tuple[str, bool, float]:
    state = layer.weight.quant_state
    if state is None:
        return "not quantized", False, 4.0
    return state.quant_type, bool(state.nested), layer.weight.numel() / math.prod(state.shape)
