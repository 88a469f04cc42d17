"""AdamW by its definition (Loshchilov and Hutter 2019, algorithm 2), beside the first steps of an optimizer that is one.

It is given the gradients and rates that the optimizer is given, on some values of each tensor, and computes in fp64. It keeps
arrays on the host: what tensors hold during an update is measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunegrid.run.first_step import MOVED, sampled

# Of the movement of three updates. On quick cells fp32 is at most 1e-5 off, and 8-bit moments 5e-2; Adam's moments without
# their correction are 3 off.
TOLERANCE, PACKED = 1e-3, 0.2
LOST = MOVED * float(np.finfo(np.float32).eps) / TOLERANCE  # of the weights' norm: what so many additions may round off

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(kw_only=True)
class Values:
    """Sampled values of a parameter group, all tensors in one: at the start, by definition, and both moments."""

    names: Sequence[str]
    settings: Mapping[str, Any]
    start: Array
    weights: Array
    first: Array
    second: Array

    @np.errstate(all="ignore")
    def step(self, gradient: Array, number: int) -> None:
        """Take a step, the first one of which is number 1. Gradients that overflow end in no number, and that is no warning."""
        (beta1, beta2), rate, decay = self.settings["betas"], float(self.settings["lr"]), self.settings["weight_decay"]
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        first, second = self.first / (1 - beta1**number), self.second / (1 - beta2**number)
        self.weights = (1 - rate * decay) * self.weights - rate * first / (np.sqrt(second) + self.settings["eps"])


class AdamW:
    """Follows the first updates of an optimizer, by one call before each step and one behind it.

    Attributes:
        gap: how far it moved the weights otherwise than by definition, as a share of the movement; None where it is no AdamW,
            made fewer steps, or was taken up in the middle.
        packed: whether the optimizer keeps moments in 8 bits.
    """

    def __init__(self, optimizer: Any, parameters: Mapping[str, Tensor]) -> None:
        """Of an optimizer over `parameters`, by name."""
        self._optimizer, self._parameters, self._groups = optimizer, parameters, list[Values]()
        self.gap: float | None = None
        self.packed = False

    def before_step(self, update: int) -> None:
        """Take the step by definition, of an update that counts from 0."""
        if update == 0 and is_adamw(self._optimizer):
            self._groups = [*self._started()]
        for values in self._groups:
            gradients = {name: self._parameters[name].grad for name in values.names}
            values.step(_in_one({name: g for name, g in gradients.items() if g is not None}), update + 1)

    def after_step(self, update: int) -> None:
        """Behind the last step that is followed, see how far apart the two are."""
        if not self._groups or update < MOVED - 1:
            return
        now = np.concatenate([_in_one({name: self._parameters[name] for name in values.names}) for values in self._groups])
        start = np.concatenate([values.start for values in self._groups])
        wanted = np.concatenate([values.weights for values in self._groups]) - start
        norm = np.linalg.norm
        self.gap = float(norm(now - start - wanted) / (norm(wanted) + LOST * norm(start)))
        states = (value for state in self._optimizer.state.values() for value in state.values())
        self.packed = any(isinstance(value, Tensor) and value.dtype is torch.uint8 for value in states)
        self._groups = []

    def _started(self) -> Iterable[Values]:
        names = {id(p): name for name, p in self._parameters.items() if p.grad is not None}
        for group in self._optimizer.param_groups:
            own = [names[id(p)] for p in group["params"] if id(p) in names]
            if own:
                start = _in_one({name: self._parameters[name] for name in own})
                none = np.zeros_like(start)
                yield Values(names=own, settings=group, start=start, weights=start, first=none, second=none)


def is_adamw(optimizer: Any) -> bool:
    """Whether it is torch's AdamW, or one of bitsandbytes', without an option that makes another optimizer of it."""
    kind = type(optimizer)
    if kind is torch.optim.AdamW:
        return not any(group["amsgrad"] or group["maximize"] for group in optimizer.param_groups)
    return kind.__module__ == "bitsandbytes.optim.adamw"


def _in_one(tensors: Mapping[str, Tensor]) -> Array:
    """Sampled values of several tensors in one, in fp64."""
    return np.concatenate([values.double().cpu().numpy() for values in sampled(tensors).values()])
