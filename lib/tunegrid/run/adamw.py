"""A reference AdamW, written from its definition, to check an optimizer's steps against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunegrid.run.first_updates import MOVED, SAMPLED, sampled_values
from tunegrid.run.meter import state_tensors

# Tolerances, relative to a tensor's movement in three updates. On quick cells, fp32 is off by at
# most 1e-4 and 8-bit moments by 7e-2, while an Adam without bias correction is off by 3. A single
# update from the optimizer's own moments is exact even with 8 bits.
STEP_TOLERANCE = 1e-3
PACKED_TOLERANCE = 0.2
# Rounding of three additions, relative to the weights' norm and in units of the tolerance.
LOST = MOVED * torch.finfo(torch.float32).eps / STEP_TOLERANCE
# Share of updates before the late one; still later, rates are so small that rounding matters.
LATE = 0.75
PACKED_BLOCK = 256  # neighbouring values whose 8-bit moments share a scale in bitsandbytes


class AdamState(NamedTuple):
    """Sampled weights of a tensor, with their first and second moments."""

    weights: Tensor
    first: Tensor
    second: Tensor


@dataclass
class AdamW:
    """AdamW as defined by Loshchilov and Hutter (2019, algorithm 2), run beside an optimizer.

    It applies the same gradients and rates to a sample of each tensor's values. It computes in fp64
    on the host, since the device's memory is measured during an update. `gap` stays None if the
    optimizer is not plain AdamW, if training was resumed, or if it ended before the third update.
    One late step is repeated from the optimizer's own weights and moments; `late_gap`, its error,
    exposes an optimizer that lost count of its steps.
    """

    optimizer: Any
    parameters: Mapping[str, Tensor]  # by name
    gap: float | None = None  # the largest relative error of a tensor's movement
    late_gap: float | None = None  # the same for one update near the end
    packed: bool = False  # whether the optimizer keeps moments in 8 bits
    _last: int = field(default=0, init=False)  # the last update to follow
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)
    _groups: dict[str, Any] = field(default_factory=dict, init=False)
    _state: dict[str, AdamState] = field(default_factory=dict, init=False)

    def before_step(self, update: int, total: int) -> None:
        """Takes the reference's step if this update is being followed; `update` counts from 0."""
        if update in (0, max(MOVED, int(LATE * total))):
            self._follow(update)
        gradients = {}
        for name in self._state:
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradients[name] = gradient
        for name, gradient in sampled_values(gradients, exact=True).items():
            state = self._state[name]
            self._state[name] = adamw_step(state, gradient, update + 1, self._groups[name])

    def _follow(self, update: int) -> None:
        """If the optimizer is plain AdamW, starts following it at `update`."""
        self._last = update or MOVED - 1
        kind = type(self.optimizer)
        groups = self.optimizer.param_groups
        if kind is torch.optim.AdamW:
            if any(group["amsgrad"] or group["maximize"] for group in groups):
                return
        elif kind.__module__ != "bitsandbytes.optim.adamw":  # bitsandbytes has no such options
            return
        group_of: dict[Tensor, Any] = {}
        for group in groups:
            group_of |= dict.fromkeys(group["params"], group)
        stepped = {}
        for name, p in self.parameters.items():
            has_state = not update or p in self.optimizer.state
            if p.grad is not None and p in group_of and has_state:
                stepped[name] = p
        for name, start in sampled_values(stepped, exact=True).items():
            p = stepped[name]
            self._start[name] = start
            self._groups[name] = group_of[p]
            moments: Sequence[Tensor] = [torch.zeros_like(start)] * 2
            if update:
                moments = held_moments(self.optimizer.state[p])
            self._state[name] = AdamState(start, *moments)

    def after_step(self, update: int) -> None:
        """Sets `gap` or `late_gap` once the last of the followed updates is done."""
        if not self._state or update < self._last:
            return
        gap = 0.0
        followed = {name: self.parameters[name] for name in self._start}
        for name, end in sampled_values(followed, exact=True).items():
            start = self._start[name]
            expected = self._state[name].weights
            movement = float((expected - start).norm() + LOST * start.norm())
            distance = float((end - expected).norm())
            if distance:
                gap = max(gap, distance / movement if movement else math.inf)
        if update < MOVED:
            self.gap = gap
            self.late_gap = None
        else:
            self.late_gap = gap
        self.packed = any(tensor.dtype is torch.uint8 for tensor in state_tensors(self.optimizer))
        self._start = {}
        self._state = {}


def held_moments(state: Mapping[str, Any]) -> Sequence[Tensor]:
    """Samples a tensor's two moments from its state in torch's or bitsandbytes' AdamW."""
    names = ("exp_avg", "exp_avg_sq") if "exp_avg" in state else ("state1", "state2")
    moments = [*sampled_values({name: state[name] for name in names}, exact=True).values()]
    if state[names[0]].dtype is not torch.uint8:
        return moments
    size = state["state1"].numel()
    blocks = torch.arange(0, size, max(1, size // SAMPLED)) // PACKED_BLOCK
    unpacked = []
    for number, codes in enumerate(moments, 1):
        levels = state[f"qmap{number}"].double().cpu()
        scales = state[f"absmax{number}"].double().cpu()
        unpacked.append(levels[codes.long()] * scales[blocks])
    return unpacked


def adamw_step(
    state: AdamState,
    gradient: Tensor,
    number: int,
    settings: Mapping[str, Any],
) -> AdamState:
    """The state after step `number`, counting from 1; `settings` is a parameter group."""
    weights, first, second = state
    beta1, beta2 = settings["betas"]
    rate = float(settings["lr"])
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    step = first / (1 - beta1**number) / ((second / (1 - beta2**number)).sqrt() + settings["eps"])
    weights = (1 - rate * settings["weight_decay"]) * weights - rate * step
    return AdamState(weights, first, second)
