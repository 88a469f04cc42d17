"""Moves weights by gradients: clipping, the optimizer and AdamW by its definition, fp16's loss scale, the schedule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn

from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Method
from tunegrid.run.first_step import MOVED, sampled
from tunegrid.run.ranks import Ranks, full_tensor

# Of the movement of three updates. On quick cells fp32 is at most 1e-5 off, and 8-bit moments 5e-2; Adam's moments without
# their correction are 3 off.
STEP_TOLERANCE, PACKED_TOLERANCE = 1e-3, 0.2
LOST = MOVED * float(np.finfo(np.float32).eps) / STEP_TOLERANCE  # of the weights' norm: what so many additions may round off

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
    """AdamW by its definition (Loshchilov and Hutter 2019, algorithm 2), beside the first steps of an optimizer that is one.

    It is given the same gradients and rates, on some values of each tensor, and computes in fp64 on the host, since what
    tensors hold during an update is measured. One call before each step, and one behind it.

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


class Stepper:
    """Makes the optimizer's steps.

    Attributes:
        cell: whose method has something to do after a step.
        optimizer: accelerate's, around the recipe's.
    """

    def __init__(self, cell: Cell, model: nn.Module, stepped: nn.Module, accelerator: Any, updates: int) -> None:
        """Steps of `stepped`, which is a cell's model, or the copy of it that ranks share out; so many updates are planned."""
        self.cell, self._model = cell, model
        optimizer = cell.method.make_optimizer(stepped, cell)  # LoRA-FA's freezes weights
        self._trained = [p for p in stepped.parameters() if p.requires_grad]
        self._accelerator = accelerator
        self.schedule = make_schedule(optimizer, cell, updates)  # before accelerate wraps its step, to be wrapped with it
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.loss_scale = LossScale(accelerator.scaler)
        self._unsettled: int | None = None  # the update of which is not known yet whether fp16 lost it

    def clip(self, *, again: bool) -> tuple[Tensor | None, Tensor | None]:
        """Clip the gradients; return their norm before and, where it is asked `again`, after. None where none are clipped.

        Norms stay on the device until the log asks for them.
        """
        bound = self.cell.recipe.max_grad_norm
        if bound is None:
            return None, None
        before = full_tensor(self._accelerator.clip_grad_norm_(self._trained, bound))
        if not again:
            return before, None
        return before, full_tensor(nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None]))

    def step(self, update: int) -> tuple[list[float], float]:
        """Step the optimizer in an update, counted from 0; return each group's rate in it, and the schedule's."""
        self.loss_scale.step(self.optimizer)
        self._unsettled = update
        return [float(group["lr"]) for group in self.optimizer.param_groups], self.schedule.get_last_lr()[0]

    @property
    def steps_alone(self) -> bool:
        """Whether nothing but the optimizer moves weights, by the gradients that are there: no loss scale, no method."""
        return self.loss_scale.scaler is None and type(self.cell.method).after_step is Method.after_step

    @property
    def settles_late(self) -> bool:
        """Whether an update is settled when the next one is about to step: in fp16, so that no device waits for its host.

        What a method does after a step needs the gradients of that step, so it cannot wait.
        """
        return self.loss_scale.scaler is not None and type(self.cell.method).after_step is Method.after_step

    def settle(self) -> int | None:
        """Advance the schedule past the last update; where fp16 lost it, return it instead."""
        update, self._unsettled = self._unsettled, None
        if update is None:
            return None
        if self.loss_scale.lost():
            return update
        self.cell.method.after_step(self._model, update)
        self.schedule.step()
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, beside weights."""
        scaler, groups = self.loss_scale.scaler, self.optimizer.param_groups
        return {
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "groups": {str(i): {k: v for k, v in group.items() if k != "params"} for i, group in enumerate(groups)},
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},  # functions
            "scaler": scaler.state_dict() if scaler else {},
            "method": self.cell.method.state_dict(self._model),
        }

    def load_state_dict(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Take over a `state_dict`, of this rank."""
        optimizer = self.optimizer.optimizer
        groups = [group | state["groups"][str(i)] for i, group in enumerate(optimizer.state_dict()["param_groups"])]
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        kept = {_key(name): entry for name, entry in state.get("optimizer", {}).items()}
        moments = {
            key: ranks.moments(entry, stepped[key]) if isinstance(key, int) else dict(entry) for key, entry in kept.items()
        }
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        if self.loss_scale.scaler and state.get("scaler"):
            self.loss_scale.scaler.load_state_dict(state["scaler"])
        self.cell.method.load_state_dict(self._model, state.get("method", {}))


def _key(name: str | int) -> str | int:
    """How an optimizer knows a parameter: by its number, which a file has as text, or as PEFT's LoRA-FA by a name."""
    return int(name) if str(name).isdecimal() else name


def make_schedule(optimizer: Any, cell: Cell, updates: int) -> Any:
    """The recipe's schedule, counted in updates."""
    recipe = cell.recipe
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * updates)
    return hf.get_scheduler(recipe.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=updates)


class LossScale:
    """Whether fp16 lost the last step; it never does in another precision.

    A fused optimizer skips a step that overflows inside its kernel, so only the device knows: the scale is lower afterwards.
    Asking for it (`get_scale`) would make the host wait at the end of every update, and the GPU then wait for the host. So the
    answer travels to the host by itself, and is read when the next step is due: the GPU has a whole forward and backward pass
    queued behind it by then, and never runs dry.
    """

    def __init__(self, scaler: Any | None) -> None:
        """`scaler` is a `torch.amp.GradScaler`, or None where losses are not scaled."""
        self.scaler = scaler
        self._lost: Tensor | None = None
        self._arrived: Any = None

    @property
    def factor(self) -> float:
        """By how much losses, and their gradients, are multiplied now; waits for the device."""
        return float(self.scaler.get_scale()) if self.scaler else 1.0

    def step(self, optimizer: Any) -> None:
        """Let accelerate's optimizer step, and send the answer on its way.

        Without a scale its inner one steps: accelerate's looks for another package on the disk each time.
        """
        if not self.scaler:
            optimizer.optimizer.step()
            return
        before = self.scaler._get_scale_async().clone()  # `get_scale` without waiting
        optimizer.step()
        lost = self.scaler._get_scale_async() < before
        if lost.is_cuda:
            self._lost = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._lost.copy_(lost, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self._lost = lost

    def lost(self) -> bool:
        """Whether the last step was lost; waits until the device has made it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._lost is not None and bool(self._lost)
