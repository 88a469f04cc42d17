"""Measures what the first updates did to each group of parameters: fields of `FirstStep`.

A group is called as in "layer 1 attention" or "head".
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from tunegrid.grid.backbones import within
from tunegrid.grid.cells import Cell
from tunegrid.run.device import random_states
from tunegrid.run.ranks import full_tensor

MOVED = 3  # updates that movement is measured over: a warm-up's first one has a rate of 0
SAMPLED = 4096  # values of a tensor that tell how far it moved
# Of the largest gradient of a group. Some gradients are zero by definition, as that of the bias of a span's head, and come out
# as what is rounded off, or as zero: below 1e-7 in the quick cells, where the smallest of all others is 1e-3.
ROUNDING = 1e-6
DIGITS = 9  # of a figure: more than fp32 has
KINDS = (  # a part of a parameter's name, and the kind of layer that it tells; the first that fits
    ("norm|\\.ln_", "norms"),
    ("relative_attention_bias", "biases of position"),
    ("crossattention|encdecattention", "cross-attention"),
    ("attention|attn", "attention"),
    ("embed|\\.wte|\\.wpe|shared\\.", "embeddings"),
    ("lm_head|\\.cls\\.", "output"),
)
WHOLE = ("norms", "biases of position", "embeddings", "output")  # one group for all layers
Figures = dict[str, float | None]  # by group; None for what is not finite


def group_of(name: str, cell: Cell, own: Iterable[str]) -> str:
    """The group that a parameter belongs to; `own` are the names of the parameters that the method added."""
    if within(name, cell.head.new_modules):
        return "head"
    if name in own:
        return cell.method.group_of(name)
    lower = f".{name.lower()}"
    kind = next((kind for pattern, kind in KINDS if re.search(pattern, lower)), None)
    layer = re.search(r"\.(\d+)\.", name)
    if kind in WHOLE or layer is None:
        return kind or "rest"
    stack = next((stack for stack in ("decoder", "encoder") if f".{stack}." in lower), "layer")
    return f"{stack} {layer[1]} {kind or 'MLP'}"


def grouped(cell: Cell, model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Names by group, in the order of the model."""
    own = cell.method.own_parameters(model)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[group_of(name, cell, own)].append(name)
    return dict(groups)


def norms(groups: Mapping[str, Sequence[str]], tensor_of: Callable[[str], Tensor | None]) -> Figures:
    """The norm of each group's tensors; groups without one are left out.

    Tensors are asked for one by one: unpacked all at once, those of a packed base would take several times its memory.
    """
    figures: Figures = {}
    for group, names in groups.items():
        known = [float(tensor.norm(dtype=torch.float32)) for name in names if (tensor := tensor_of(name)) is not None]
        if known:
            figures[group] = figure(math.hypot(*known))
    return figures


def reached(groups: Mapping[str, Sequence[str]], gradients: Mapping[str, Tensor]) -> dict[str, int]:
    """How many of each group's tensors have a gradient other than rounding: one of many that has none hardly moves a norm."""
    there = {name for name, gradient in gradients.items() if gradient.any()} - rounded(groups, gradients)
    return {group: len(there & set(names)) for group, names in groups.items()}


def rounded(groups: Mapping[str, Sequence[str]], gradients: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors whose gradients are no more than what others of their group round off; none where all are zero."""
    sizes = {name: float(gradient.norm(dtype=torch.float32)) for name, gradient in gradients.items()}
    largest = {name: max(sizes.get(other, 0.0) for other in names) for names in groups.values() for name in names}
    return {name for name, size in sizes.items() if largest.get(name, 0.0) > 0 and size <= ROUNDING * largest[name]}


def figure(value: Any) -> float | None:
    """A number for the record; None for one that is infinite or none."""
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def digest(value: Any) -> str:
    """Sixteen hex digits."""
    return sha256(repr(value).encode()).hexdigest()[:16]


def digest_of(values: Iterable[Any]) -> str:
    """The digest of the list of these values, which is never made."""
    whole = sha256(b"[")
    for index, value in enumerate(values):
        whole.update(f"{', ' if index else ''}{value!r}".encode())
    whole.update(b"]")
    return whole.hexdigest()[:16]


# The first updates


class FirstUpdates:
    """Looks at a model's parameters in its first update, and after the third, or the last of fewer."""

    def __init__(self, cell: Cell, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        """A look at `parameters`, by name, of a cell's model."""
        self._cell, self._model, self._parameters = cell, model, parameters
        self._start: dict[str, Tensor] = {}
        self._rounded: set[str] = set()

    def gradients(self, device: torch.device) -> dict[str, Any]:
        """Norms by group of the gradients that the optimizer is about to use, and what was drawn so far."""
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        self._start = sampled({name: self._parameters[name] for name in gradients})
        groups = grouped(self._cell, self._model, gradients)
        whole = {name: full_tensor(gradient) for name, gradient in gradients.items()}
        self._rounded = rounded(groups, whole)
        return {
            "gradients": norms(groups, whole.get),
            "reached": reached(groups, whole),
            "drawn": digest(random_states(device)[device.type].tolist()),  # the generator that dropout draws from
        }

    def moved(self) -> dict[str, Any]:
        """How far each group moved since: norms over sampled values. Empty where nobody saw the first update.

        An AdamW moves a weight by its whole rate also where its gradient is rounding: such tensors are left out.
        """
        if not self._start:
            return {}
        now = sampled({name: self._parameters[name] for name in self._start})
        change = {name: now[name] - start for name, start in self._start.items() if name not in self._rounded}
        return {"moved": norms(grouped(self._cell, self._model, change), change.get)}


def sampled(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some values of each tensor, evenly spread: a copy of all would double what training keeps."""
    steps = {name: max(1, p.numel() // SAMPLED) for name, p in parameters.items()}
    return {name: full_tensor(p.detach()).reshape(-1)[:: steps[name]].float().clone() for name, p in parameters.items()}
