"""Which base an adapter lies on, told by the weights of its layers beside those of the packed base that it was trained over.

A layer that was packed to 4 bits has three sets of numbers: the packed ones; these unpacked, each on one of sixteen levels;
and the checkpoint's own, which packed give the same 4 bits.
"""

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunegrid.record.parts import BaseKind

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
