"""Moves weights by gradients: clipping, the optimizer, fp16's loss scale and the schedule."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Method
from tunegrid.run.clipping import Clipping
from tunegrid.run.ranks import Ranks
from tunegrid.run.scale import LossScale
from tunegrid.run.schedule import make_schedule


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
        trained = [p for p in stepped.parameters() if p.requires_grad]
        self.clipping = Clipping(accelerator, trained, cell.recipe.max_grad_norm)
        self.schedule = make_schedule(optimizer, cell, updates)  # before accelerate wraps its step, to be wrapped with it
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.loss_scale = LossScale(accelerator.scaler)
        self._unsettled: int | None = None  # the update of which is not known yet whether fp16 lost it

    def clip(self, *, again: bool) -> tuple[Tensor | None, Tensor | None]:
        """Clip the gradients; return their norm before and, where it is asked `again`, after. None where none are clipped."""
        before = self.clipping.clip()
        return before, self.clipping.norm() if before is not None and again else None

    def step(self, update: int) -> tuple[list[float], float]:
        """Step the optimizer in an update, counted from 0; return each group's rate in it, and the schedule's."""
        self.loss_scale.step(self.optimizer)
        self._unsettled = update
        return [float(group["lr"]) for group in self.optimizer.param_groups], self.schedule.get_last_lr()[0]

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
        kept = {int(number): entry for number, entry in state.get("optimizer", {}).items()}
        moments = {number: ranks.moments(entry, stepped[number]) for number, entry in kept.items()}
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        if self.loss_scale.scaler and state.get("scaler"):
            self.loss_scale.scaler.load_state_dict(state["scaler"])
        self.cell.method.load_state_dict(self._model, state.get("method", {}))
