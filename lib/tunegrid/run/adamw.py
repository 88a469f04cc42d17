"""AdamW by its definition, held against the steps that an optimizer makes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunegrid.run.first_updates import MOVED, SAMPLED, sample

# Of a tensor's movement in three updates. On quick cells fp32 is at most 1e-4 off, and 8-bit moments 7e-2; Adam's moments
# without their correction are 3 off. One update from the moments that the optimizer holds is exact with 8 bits, too.
STEP_TOLERANCE, PACKED_TOLERANCE = 1e-3, 0.2
LOST = MOVED * torch.finfo(torch.float32).eps / STEP_TOLERANCE  # of the weights' norm: what so many additions may round off
LATE = 0.75  # of the updates come before the late one; behind it rates are so small that rounding hides much
PACKED_BLOCK = 256  # neighbouring values whose packed moments share a scale, as bitsandbytes has it


@dataclass
class AdamW:
    """AdamW by its definition (Loshchilov and Hutter 2019, algorithm 2), beside the first steps of an optimizer that is one.

    It is given the same gradients and rates, on some values of each tensor, and computes in fp64 on the host, since what
    tensors hold during an update is measured. `gap` stays None if the optimizer is no AdamW, made fewer steps, or was taken up
    in the middle. One late step starts from the optimizer's own weights and moments: its `late_gap` shows a count that is lost.
    """

    optimizer: Any
    parameters: Mapping[str, Tensor]  # by name
    gap: float | None = None  # how far a tensor moved otherwise than by definition, as a share of its movement: the largest
    late_gap: float | None = None  # the same of one update near the end
    packed: bool = False  # whether the optimizer keeps moments in 8 bits
    _last: int = field(default=0, init=False)  # the update that ends what is followed
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)
    _groups: dict[str, Any] = field(default_factory=dict, init=False)
    _state: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False)  # weights and both moments

    def before_step(self, update: int, total: int) -> None:
        """Take the step by definition, of an update that counts from 0, of so many."""
        if update in (0, max(MOVED, int(LATE * total))):
            self._last = update or MOVED - 1
            kind, groups = type(self.optimizer), self.optimizer.param_groups
            is_torch = kind is torch.optim.AdamW and not any(group["amsgrad"] or group["maximize"] for group in groups)
            is_followed = is_torch or kind.__module__ == "bitsandbytes.optim.adamw"  # theirs have no such options
            group_of = {p: group for group in groups for p in group["params"]} if is_followed else {}
            stepped = {name: p for name, p in self.parameters.items() if p.grad is not None and p in group_of}
            stepped = {name: p for name, p in stepped.items() if not update or p in self.optimizer.state}
            for name, start in sample(stepped, exact=True).items():
                first, second = held_moments(self.optimizer.state[stepped[name]]) if update else [torch.zeros_like(start)] * 2
                self._start[name], self._groups[name] = start, group_of[stepped[name]]
                self._state[name] = start, first, second
        gradients = {name: self.parameters[name].grad for name in self._state}
        given_gradients = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        for name, gradient in sample(given_gradients, exact=True).items():
            self._state[name] = adamw_step(self._state[name], gradient, update + 1, self._groups[name])

    def after_step(self, update: int) -> None:
        """Behind the last step that is followed, see how far apart the two are."""
        if not self._state or update < self._last:
            return
        gap = 0.0
        for name, end in sample({name: self.parameters[name] for name in self._start}, exact=True).items():
            start, expected = self._start[name], self._state[name][0]
            movement = float((expected - start).norm() + LOST * start.norm())
            distance = float((end - expected).norm())
            if distance:
                gap = max(gap, distance / movement if movement else math.inf)
        self.gap, self.late_gap = (gap, None) if update < MOVED else (self.gap, gap)
        states = (value for state in self.optimizer.state.values() for value in state.values())
        self.packed = any(isinstance(value, Tensor) and value.dtype is torch.uint8 for value in states)
        self._start, self._state = {}, {}


def held_moments(state: Mapping[str, Any]) -> Sequence[Tensor]:
    """Both moments, of the sampled values, that torch's or bitsandbytes' AdamW holds of a tensor."""
    names = ("exp_avg", "exp_avg_sq") if "exp_avg" in state else ("state1", "state2")
    moments = [*sample({name: state[name] for name in names}, exact=True).values()]
    if state[names[0]].dtype is not torch.uint8:
        return moments
    size = state["state1"].numel()
    blocks = torch.arange(0, size, max(1, size // SAMPLED)) // PACKED_BLOCK
    pairs = [(state[f"qmap{i}"].double().cpu(), state[f"absmax{i}"].double().cpu()) for i in (1, 2)]
    return [levels[codes.long()] * scales[blocks] for codes, (levels, scales) in zip(moments, pairs, strict=True)]


def adamw_step(
    state: tuple[Tensor, Tensor, Tensor], gradient: Tensor, number: int, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and both moments after a step, the first one of which is number 1; `settings` are an optimizer's group."""
    weights, first, second = state
    (beta1, beta2), rate, decay = settings["betas"], float(settings["lr"]), settings["weight_decay"]
    first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
    step = first / (1 - beta1**number) / ((second / (1 - beta2**number)).sqrt() + settings["eps"])
    return (1 - rate * decay) * weights - rate * step, first, second
