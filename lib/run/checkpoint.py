"""Where a long training stands, on disk now and then. In: a trainer between two updates. Out: one safetensors file.

It holds what the next update hangs on: trained weights, optimizer state, schedule, random state, the best epoch so far. A run
taken up from it ends with the weights, bit for bit on a CPU, that it would have ended with.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.errors import first_line

if TYPE_CHECKING:
    from lib.run.training import Trainer

COURSE = ("updates", "memory", "learning_rates", "epoch_scores", "chosen_epoch", "skipped", "order", "micro_batch", "fallbacks")


@dataclass(kw_only=True)
class Checkpoints:
    """One cell's file.

    Attributes:
        path: appears with the first save and goes when the cell has its record.
        every_seconds: between two saves.
        resume: take up what is there; otherwise start anew.
    """

    path: Path
    every_seconds: float
    resume: bool = False
    saved_at: float = field(default_factory=time.monotonic)

    def save_if_due(self, trainer: "Trainer", losses: list[Tensor], best: dict[str, Tensor] | None) -> None:
        """Write the file where its time has come: whole, or not at all."""
        if time.monotonic() - self.saved_at < self.every_seconds:
            return
        tensors, plain = _optimizer_state(trainer)
        tensors |= {f"weights.{name}": p for name, p in trainer.parameters.items() if p.requires_grad}
        tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
        tensors |= {f"random.{name}": state for name, state in random_states(trainer.meter.device).items()}
        state = {
            "course": {name: getattr(trainer.course, name) for name in COURSE},
            "losses": torch.stack(losses).tolist(),
            "reached": sorted(trainer.reached),
            "optimizer": plain,
            "rates": [group["lr"] for group in trainer.optimizer.optimizer.param_groups],
            "schedule": {k: v for k, v in trainer.schedule.state_dict().items() if k != "lr_lambdas"},
            "scaler": trainer.accelerator.scaler.state_dict() if trainer.accelerator.scaler else None,
        }
        kept = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        self.saved_at = time.monotonic()
        part = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(kept, part, {"state": json.dumps(state)})
            part.replace(self.path)
        except (OSError, SafetensorError) as error:  # costs the checkpoint, not the training
            trainer.course.fallbacks.append(f"no checkpoint at update {trainer.course.updates}: {first_line(error)}")
        finally:
            part.unlink(missing_ok=True)

    def restore(self, trainer: "Trainer") -> tuple[list[Tensor], dict[str, Tensor] | None]:
        """Put the trainer where the file says it stood; return the losses and the best epoch's weights so far."""
        if not (self.resume and self.path.is_file()):
            return [], None
        with safe_open(self.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # safetensors' own, no mapping
            state: dict[str, Any] = json.loads(file.metadata()["state"])
        with torch.no_grad():
            for name, tensor in _named(tensors, "weights").items():
                trainer.parameters[name].copy_(tensor)
        _load_optimizer(trainer, _named(tensors, "optimizer"), state)
        for name, value in state["course"].items():
            setattr(trainer.course, name, value)
        trainer.course.losses = state["losses"]
        trainer.reached = set(state["reached"])
        seen = f"resumed at update {trainer.course.updates} of {trainer.total}; seconds and throughput are of the rest"
        trainer.course.fallbacks.append(seen)
        set_random_states(trainer.meter.device, _named(tensors, "random"))
        device = trainer.meter.device
        best = {name: tensor.to(device) for name, tensor in _named(tensors, "best").items()}
        return [torch.tensor(loss, device=device) for loss in state["losses"]], best or None

    def clear(self) -> None:
        """The cell is recorded: nothing is left to take up."""
        self.path.unlink(missing_ok=True)


def _named(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}


def _optimizer_state(trainer: "Trainer") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the rest as plain values."""
    leaves = dict(_leaves(trainer.optimizer.optimizer.state_dict()["state"], "optimizer"))
    tensors = {name: value for name, value in leaves.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in leaves.items() if name not in tensors}


def _leaves(tree: dict[Any, Any], place: str) -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings (bitsandbytes nests its 8-bit state) with its place, as in optimizer.0.step."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}.{key}")
        else:
            yield f"{place}.{key}", value


def _load_optimizer(trainer: "Trainer", tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    found: dict[int, dict[str, Any]] = {}
    plain = {name.removeprefix("optimizer."): value for name, value in state["optimizer"].items()}
    for name, value in {**tensors, **plain}.items():
        number, *path, key = name.split(".")
        branch = found.setdefault(int(number), {})
        for step in path:
            branch = branch.setdefault(step, {})
        branch[key] = value
    optimizer = trainer.optimizer.optimizer
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, state["rates"], strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": found, "param_groups": groups})
    trainer.schedule.load_state_dict(trainer.schedule.state_dict() | state["schedule"])
    if state["scaler"] and trainer.accelerator.scaler:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])


def random_states(device: torch.device) -> dict[str, Tensor]:
    """What the next dropout hangs on."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    """Go on from there."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
