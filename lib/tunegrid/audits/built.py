"""Audits of what was built: heads, adapters, quantization."""

import math
from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunegrid.audits.evidence import Evidence
from tunegrid.grid.backbones import within
from tunegrid.grid.methods import TOKEN_ROWS, Answer
from tunegrid.run.build import build
from tunegrid.run.probe import undisturbed
from tunegrid.run.weights import model_checksums

BLOCK = 64  # weights that share a scale in NF4 (Dettmers et al. 2023, section 3)


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


def drawn_from_the_seed(evidence: Evidence) -> Answer:
    """What trains started as the cell's seed draws it: built once more, it starts so again. On micro backbones only."""
    cell, trainer = evidence.cell, evidence.trainer
    if not cell.profile.micro:  # elsewhere a second model may not fit beside the first
        return None
    with undisturbed(trainer):
        again = model_checksums(build(cell, evidence.codec.tokenizer, trainer.meter.device))
    trained = [name for name, p in trainer.parameters.items() if p.requires_grad]
    other = [name for name in trained if again.get(name) != trainer.before[name]]
    return not other, f"{len(trained)} tensors" + (f"; {len(other)} start elsewhere, {other[0]} among them" if other else "")


def adapters_where_declared(evidence: Evidence) -> Answer:
    """Adapters are on all of the method's target layers and nowhere else, and have the declared facts."""
    method, cell = evidence.cell.method, evidence.cell
    layers = {name: module for name, module in evidence.model.named_modules() if is_adapted(module)}
    targets = method.targets(cell)
    if not targets:
        kind = "has no target layers" if method.adapts else "trains in full"
        return not layers, f"{len(layers)} adapters in a model that {kind}"
    new = cell.head.new_modules  # PEFT never adapts what it trains in full
    wanted = {name for name, _ in base_layers(evidence.model) if _ends_in(name, targets) and not within(name, new)}
    if set(layers) != wanted:
        odd = sorted(wanted ^ set(layers))
        named = f", {odd[0]} among the differences" if odd else ""
        return False, f"{len(layers)} adapters where {len(wanted)} layers are targets{named}"
    shown = {name: method.layer_facts(layer) for name, layer in layers.items()}
    declared = {name: method.declared_facts_of(cell, name) for name in layers}
    facts = " and ".join(", ".join(some) for some in sorted(set(shown.values())) if some)
    detail = f"{len(layers)} adapters{f': {facts}' if facts else ''}"
    odd = [name for name in layers if shown[name] != declared[name]]
    return not odd, f"{detail}; declared: {', '.join(declared[odd[0]])} for {odd[0]}" if odd else detail


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT's tuner wraps this layer. The trained rows of an embedding do not count as an adapter."""
    return isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)


def _ends_in(name: str, targets: tuple[str, ...]) -> bool:
    """PEFT's rule for target modules."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def base_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
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
    linear = [(name, layer) for name, layer in base_layers(evidence.model) if isinstance(layer, nn.Linear | Conv1D)]
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


def kept_in_fp32(model: nn.Module) -> set[str]:
    """Layers that transformers keeps in fp32 whatever type is asked for, as T5's wo."""
    return {name for m in model.modules() for name in getattr(m, "_keep_in_fp32_modules", None) or ()}


def _packing(layer: Any) -> tuple[str, bool, float, int]:
    state = layer.weight.quant_state
    if state is None:
        return "not quantized", False, 4.0, 0
    return state.quant_type, bool(state.nested), layer.weight.numel() / math.prod(state.shape), state.blocksize
