"""Figures that tell a change without statistics: of groups ("layer 1 attention"), single modules, and the first updates.

They stand below the training loop, which takes those of its first updates, and `tunegrid.run.before_training`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from tunegrid.grid.backbones import is_part
from tunegrid.grid.cells import Cell
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


def names_by_group(cell: Cell, model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Names by group, in the order of the model: the head's, those that the method added, and those of each layer and kind."""
    method_names = cell.method.own_parameters(model)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        lower_name, layer = f".{name.lower()}", re.search(r"\.(\d+)\.", name)
        kind = next((kind for pattern, kind in KINDS if re.search(pattern, lower_name)), None)
        stack = next((stack for stack in ("decoder", "encoder") if f".{stack}." in lower_name), "layer")
        if is_part(name, cell.head.new_modules):
            group = "head"
        elif name in method_names:
            group = cell.method.group_name(name)
        elif kind in WHOLE or layer is None:
            group = kind or "rest"
        else:
            group = f"{stack} {layer[1]} {kind or 'MLP'}"
        groups[group].append(name)
    return dict(groups)


def norms(groups: Mapping[str, Sequence[str]], sizes: Mapping[str, float]) -> Figures:
    """The norm of each group, from those of its tensors; groups without one are left out."""
    sizes_by_group = {group: [sizes[name] for name in names if name in sizes] for group, names in groups.items()}
    return {group: figure(math.hypot(*tensor_norms)) for group, tensor_norms in sizes_by_group.items() if tensor_norms}


def gradient_figures(
    groups: Mapping[str, Sequence[str]], gradients: Mapping[str, Tensor]
) -> tuple[Figures, dict[str, int], set[str]]:
    """Norms by group, how many of a group's tensors have more than rounding, and the names of those that have only that."""
    # Counted, since one tensor of many without a gradient hardly moves a norm. If all of a group are zero, none is rounding.
    sizes = {name: float(gradient.norm(dtype=torch.float32)) for name, gradient in gradients.items()}
    largest = {name: max(sizes.get(other, 0.0) for other in names) for names in groups.values() for name in names}
    rounding = {name for name, size in sizes.items() if largest.get(name, 0.0) > 0 and size <= ROUNDING * largest[name]}
    reached_names = {name for name, gradient in gradients.items() if gradient.any()} - rounding
    return norms(groups, sizes), {group: len(reached_names & set(names)) for group, names in groups.items()}, rounding


def figure(value: Any) -> float | None:
    """A number for the record; None for one that is infinite or none."""
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def digest(value: Any) -> str:
    """Sixteen hex digits of a value; of an iterator, those of the list of its values, which is never made."""
    if not isinstance(value, Iterator):
        return sha256(repr(value).encode()).hexdigest()[:16]
    hasher = sha256(b"[")
    for index, item in enumerate(value):
        hasher.update(f"{', ' if index else ''}{item!r}".encode())
    hasher.update(b"]")
    return hasher.hexdigest()[:16]


def sample(tensors: Mapping[str, Any], *, exact: bool = False) -> dict[str, Tensor]:
    """Some values of each tensor, evenly spread: a copy of all would double what is kept. If exact, in fp64 on the host."""
    steps = {name: max(1, tensor.numel() // SAMPLED) for name, tensor in tensors.items()}
    values = {name: full_tensor(p.detach()).reshape(-1)[:: steps[name]].float().clone() for name, p in tensors.items()}
    return {name: some.double().cpu() for name, some in values.items()} if exact else values


@dataclass
class FirstUpdates:
    """Looks at a cell's parameters, by name, in the first update, and after the third, or the last of fewer."""

    cell: Cell
    model: nn.Module
    parameters: Mapping[str, Tensor]
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)
    _rounding: set[str] = field(default_factory=set, init=False)  # names of the tensors whose gradients are no more than that

    def gradients(self, device: torch.device) -> dict[str, Any]:
        """Norms by group of the gradients that the optimizer is about to use, and what was drawn so far."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self._start = sample({name: self.parameters[name] for name in gradients})
        groups = names_by_group(self.cell, self.model, gradients)
        full_gradients = {name: full_tensor(gradient) for name, gradient in gradients.items()}
        sizes, counts, self._rounding = gradient_figures(groups, full_gradients)
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()  # dropout draws from it
        return {"gradients": sizes, "reached": counts, "drawn": digest(state.tolist())}

    def movement(self) -> dict[str, Any]:
        """How far each group moved since: norms over sampled values. Empty if no one recorded the first update."""
        if not self._start:
            return {}
        end = sample({name: self.parameters[name] for name in self._start})
        # An AdamW moves a weight by its whole rate also if its gradient is rounding: such tensors are left out.
        change = {name: end[name] - start for name, start in self._start.items() if name not in self._rounding}
        sizes = {name: float(one.norm(dtype=torch.float32)) for name, one in change.items()}
        return {"moved": norms(names_by_group(self.cell, self.model, change), sizes)}
