"""Measures what the first updates did to each group of parameters: fields of `FirstStep`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunegrid.grid.cells import Cell
from tunegrid.run.device import random_states
from tunegrid.run.groups import digest, grouped, norms, reached
from tunegrid.run.ranks import full_tensor

MOVED = 3  # updates that movement is measured over: a warm-up's first one has a rate of 0
SAMPLED = 4096  # values of a tensor that tell how far it moved


class FirstUpdates:
    """Looks at a model's parameters in its first update, and after the third, or the last of fewer."""

    def __init__(self, cell: Cell, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        """A look at `parameters`, by name, of a cell's model."""
        self._cell, self._model, self._parameters = cell, model, parameters
        self._start: dict[str, Tensor] = {}

    def gradients(self, device: torch.device) -> dict[str, Any]:
        """Norms by group of the gradients that the optimizer is about to use, and what was drawn so far."""
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        self._start = sampled({name: self._parameters[name] for name in gradients})
        groups = grouped(self._cell, self._model, gradients)
        return {
            "gradients": norms(groups, lambda name: full_tensor(gradients[name])),
            "reached": reached(groups, {name: full_tensor(gradient) for name, gradient in gradients.items()}),
            "drawn": digest(random_states(device)[device.type].tolist()),  # the generator that dropout draws from
        }

    def moved(self) -> dict[str, Any]:
        """How far each group moved since: norms over sampled values. Empty where nobody saw the first update."""
        if not self._start:
            return {}
        now = sampled({name: self._parameters[name] for name in self._start})
        change = {name: now[name] - start for name, start in self._start.items()}
        return {"moved": norms(grouped(self._cell, self._model, change), change.get)}


def sampled(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some values of each tensor, evenly spread: a copy of all would double what training keeps."""
    steps = {name: max(1, p.numel() // SAMPLED) for name, p in parameters.items()}
    return {name: full_tensor(p.detach()).reshape(-1)[:: steps[name]].float().clone() for name, p in parameters.items()}
