"""Computes figures of parameter groups, such as norms, that reveal a change without statistics.

The training loop computes figures of its first updates; `tunegrid.run.before_training` does so for
the untrained model.
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

MOVED = 3  # updates over which movement is measured, since a warm-up starts at a rate of 0
SAMPLED = 4096  # values to sample per tensor; up to twice as many are taken
# Relative to a group's largest norm. Some gradients are zero by definition, such as the
# gradient of a span head's bias, and come out as rounding errors or zero. In the quick cells these
# are below 1e-7, while the smallest other gradient is 1e-3.
ROUNDING = 1e-6
DIGITS = 9  # significant digits of a figure, more than fp32 has
LAYER_KINDS = (  # patterns of parameter names and their kinds of layer; the first match counts
    ("norm|\\.ln_", "norms"),
    ("relative_attention_bias", "biases of position"),
    ("crossattention|encdecattention", "cross-attention"),
    ("attention|attn", "attention"),
    ("embed|\\.wte|\\.wpe|shared\\.", "embeddings"),
    ("lm_head|\\.cls\\.", "output"),
)
# Kinds with one group for all layers.
WHOLE = ("norms", "biases of position", "embeddings", "output")
Figures = dict[str, float | None]  # by group; None for a value that is not finite


def names_by_group(cell: Cell, model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Sorts parameter names into groups such as "head", "lora_A" and "layer 1 attention"."""
    method_names = cell.method.own_parameters(model)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        lower_name = f".{name.lower()}"
        layer = re.search(r"\.(\d+)\.", name)
        kind = next((kind for pattern, kind in LAYER_KINDS if re.search(pattern, lower_name)), None)
        stacks = (stack for stack in ("decoder", "encoder") if f".{stack}." in lower_name)
        stack = next(stacks, "layer")
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
    """Each group's norm, computed from its tensors' norms in `sizes`; omits groups without any."""
    norms_by_group = {}
    for group, names in groups.items():
        tensor_norms = [sizes[name] for name in names if name in sizes]
        if tensor_norms:
            norms_by_group[group] = figure(math.hypot(*tensor_norms))
    return norms_by_group


def gradient_figures(
    groups: Mapping[str, Sequence[str]],
    gradients: Mapping[str, Tensor],
) -> tuple[Figures, dict[str, int], set[str]]:
    """The gradient norm and gradient count of each group, and the names of negligible gradients.

    The count excludes zeros and rounding errors. If one tensor among many loses its gradient, the
    norm hardly changes, but the count does.
    """
    sizes: dict[str, float] = {}
    for name, gradient in gradients.items():
        sizes[name] = float(gradient.norm(dtype=torch.float32))
    rounding: set[str] = set()
    counts: dict[str, int] = {}
    for group, names in groups.items():
        largest = max((sizes.get(name, 0.0) for name in names), default=0.0)
        counts[group] = 0
        for name in names:
            if name not in sizes:
                continue
            if largest > 0 and sizes[name] <= ROUNDING * largest:
                rounding.add(name)
            elif gradients[name].any():
                counts[group] += 1
    return norms(groups, sizes), counts, rounding


def figure(value: Any) -> float | None:
    """Rounds a number for the record; returns None for infinity and NaN."""
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def digest(value: Any) -> str:
    """Sixteen hex digits that identify a value; an iterator is hashed like a list, item by item."""
    if not isinstance(value, Iterator):
        return sha256(repr(value).encode()).hexdigest()[:16]
    hasher = sha256(b"[")
    for index, item in enumerate(value):
        hasher.update(f"{', ' if index else ''}{item!r}".encode())
    hasher.update(b"]")
    return hasher.hexdigest()[:16]


def sampled_values(tensors: Mapping[str, Any], *, exact: bool = False) -> dict[str, Tensor]:
    """Copies evenly spaced values of each tensor.

    Copies are fp32; with `exact`, they are then widened to fp64 and moved to the CPU.
    """
    samples = {}
    for name, tensor in tensors.items():
        step = max(1, tensor.numel() // SAMPLED)
        values = full_tensor(tensor.detach()).reshape(-1)[::step].float().clone()
        samples[name] = values.double().cpu() if exact else values
    return samples


@dataclass
class FirstUpdates:
    """Measures the first update's gradients, and how far weights move in up to three updates."""

    cell: Cell
    model: nn.Module
    parameters: Mapping[str, Tensor]
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)
    # Names of the tensors whose gradients are mere rounding.
    _rounding: set[str] = field(default_factory=set, init=False)

    def gradients(self, device: torch.device) -> dict[str, Any]:
        """Gradient norms and counts by group before the step, and a digest of the RNG state."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self._start = sampled_values({name: self.parameters[name] for name in gradients})
        groups = names_by_group(self.cell, self.model, gradients)
        full_gradients = {name: full_tensor(gradient) for name, gradient in gradients.items()}
        sizes, counts, self._rounding = gradient_figures(groups, full_gradients)
        state = torch.get_rng_state()  # dropout draws from this state
        if device.type == "cuda":
            state = torch.cuda.get_rng_state(device)
        return {"gradients": sizes, "reached": counts, "drawn": digest(state.tolist())}

    def movement(self) -> dict[str, Any]:
        """The distance that each group's sampled values moved; empty before a `gradients` call."""
        if not self._start:
            return {}
        ends = sampled_values({name: self.parameters[name] for name in self._start})
        sizes = {}
        for name, start in self._start.items():
            # AdamW moves a weight by its full rate even if the gradient is mere rounding.
            if name not in self._rounding:
                sizes[name] = float((ends[name] - start).norm(dtype=torch.float32))
        return {"moved": norms(names_by_group(self.cell, self.model, sizes), sizes)}
