"""Scores models between two trained ones, at other scales of an adapter, and their mean: weights in, points of rows out.

Between two: theta(a) = (1 - a) x first + a x second, in fp32, tensor by tensor. Nothing trains.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunegrid.codecs.base import Codec
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.run.evaluation import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.run.progress import Progress
from tunegrid.run.saved import SAME_TASK, Fact, Saved, unlike

Points = Sequence[float]  # of the main score, by row
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Scores a model by its task's main score."""

    codec: Codec
    device: torch.device

    def points(self, model: nn.Module, rows: Sequence[Row]) -> Points:
        """The main score's points of each row."""
        return self.scored(model, rows)[1]

    def scored(self, model: nn.Module, rows: Sequence[Row]) -> tuple[float, Points]:
        """The main score, and its points by row."""
        progress = Progress(self.codec.cell.id, lambda state: None)
        evaluation = evaluate(model, self.codec, rows, Metrics(), self.device, progress)
        name = self.codec.task.main_score
        return evaluation.scores[name], evaluation.examples[name]


def check_alike(saved: Sequence[Saved]) -> None:
    """Raises InputError where models do not start from one checkpoint, or were trained and scored on other rows."""
    first = saved[0]
    for other in saved[1:]:
        if difference := unlike(first, other, FACTS):
            raise InputError(f"no path leads from {first.name} to {other.name}: {difference}")


FACTS: Mapping[str, Fact] = {
    **SAME_TASK,
    "the head": lambda saved: saved.record.model and saved.record.model.architecture,
    "the checkpoint": lambda saved: saved.record.model and (saved.record.model.fingerprint or saved.record.model.checkpoint),
}


def check_seed(first: Saved, second: Saved) -> None:
    """Raises InputError where the heads of two models start from different seeds."""
    seeds = [saved.record.seeds.seed for saved in (first, second)]
    if seeds[0] != seeds[1]:
        raise InputError(
            f"{first.name} and {second.name} have seeds {seeds[0]} and {seeds[1]}, so their heads start elsewhere; "
            "give two models of one seed, or three seeds of one cell for their mean"
        )


def check_seeds(saved: Sequence[Saved]) -> None:
    """Raises InputError where models whose mean is asked for are not seeds of one cell, each once."""
    cells = dict.fromkeys(one.cell.id for one in saved)
    if len(cells) > 1:
        raise InputError(
            f"the models are of {' and '.join(cells)}: give two models for a path, or seeds of one cell for their mean"
        )
    if len({one.record.seeds.seed for one in saved}) < len(saved):
        raise InputError("two models have one seed: give each seed once for their mean")


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights in fp32, apart from it, those of linear layers (out, in).

    GPT-2's have it the other way round, but for those that were packed to 4 bits: transformers makes them plain linear layers.
    """
    state = {name: tensor.detach().clone() for name, tensor in _turned(model, model.state_dict()).items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load_state(model: nn.Module, state: State) -> None:
    """Give a model such weights."""
    model.load_state_dict(_turned(model, state))


def _turned(model: nn.Module, state: State) -> dict[str, Tensor]:
    """The weights, those of GPT-2's own kind of layer transposed."""
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {name: tensor.T if name in turned else tensor for name, tensor in state.items()}


def check_states(first: State, second: State) -> None:
    """Raises InputError where two models do not have the same tensors."""
    unlike = sorted(
        {*first.keys() ^ second.keys(), *(n for n in first.keys() & second.keys() if first[n].shape != second[n].shape)}
    )
    if unlike:
        raise InputError(f"the two models have {len(unlike)} tensors that do not match, {unlike[0]} among them")


def between(first: State, second: State, share: float) -> dict[str, Tensor]:
    """The weights at a share of the way; at 0 and 1 they are those of the ends, bit for bit."""
    return {
        name: torch.lerp(tensor, second[name], share) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def mean(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of several models' weights ("model soup"; Wortsman et al. 2022)."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


def along(model: nn.Module, first: State, second: State, shares: Sequence[float]) -> Iterator[tuple[float, nn.Module]]:
    """The model with the weights at each share of the way."""
    check_states(first, second)
    for share in shares:
        load_state(model, between(first, second, share))
        yield share, model


def scaled(model: Any, scales: Sequence[float]) -> Iterator[tuple[float, nn.Module]]:
    """An adapter at each scale, by PEFT's own call (WiSE-FT; Wortsman et al. 2022): 0 is its base with the trained head."""
    for scale in scales:
        with rescale_adapter_scale(model, scale):
            yield scale, model
