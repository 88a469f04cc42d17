"""What a race of training loops is run over, and how it is timed. In: a cell, its model, its batches. Out: a `Race`.

All contenders start from the same weights and the same seed, and train on the same batches in the same order, with the same
recipe in the same precision. They differ in how they loop (`lib.run.peers_train`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice
from typing import Any

import accelerate
import torch
import transformers as hf
from torch import Tensor, nn

from lib.codecs.base import Codec, Feature
from lib.codecs.store import lengths_of
from lib.grid.cells import Cell
from lib.run.device import drop_garbage, resolve_precision
from lib.run.meter import GIB
from lib.run.order import chunks, epoch_batches
from lib.run.progress import Progress

WARMUP_UPDATES = 1  # not timed: first calls allocate memory and pick kernels


@dataclass(frozen=True, kw_only=True)
class Race:
    """What every contender is given.

    Attributes:
        features: exactly as many as the recipe's updates take, so that every batch is full.
        start: the weights that train, as they are at the start.
    """

    cell: Cell
    model: nn.Module
    codec: Codec
    device: torch.device
    features: Sequence[Feature]
    start: Mapping[str, Tensor]
    progress: Progress = field(default_factory=lambda: Progress("peers", lambda standing: None))

    @cached_property
    def groups(self) -> list[list[Sequence[Feature]]]:
        """The micro-batches of each update, as our own loop takes them."""
        recipe = self.cell.recipe
        batches = epoch_batches(lengths_of(self.features), recipe.per_device_train_batch_size, self.cell.profile.seed, 0)
        groups = chunks(batches, recipe.gradient_accumulation_steps)
        return [[[self.features[place] for place in batch] for batch in group] for group in groups]

    @property
    def ordered(self) -> list[Feature]:
        """All features in the order in which they are trained on."""
        return [feature for group in self.groups for batch in group for feature in batch]

    @property
    def precision(self) -> str:
        """The recipe's, or what this device has in its place."""
        return resolve_precision(self.cell, self.device)[0]

    def restore(self) -> None:
        """The weights of the start, without gradients, and nothing of an earlier contender.

        On a CPU memory that was freed stays with the process: long training has all it needs after a few updates, and turns of
        few updates would time how the kernel zeroes it.
        """
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.grad = None
                if name in self.start:
                    parameter.copy_(self.start[name])
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        drop_garbage(self.device)
        hf.set_seed(self.cell.profile.seed)


def race_of(
    cell: Cell, model: nn.Module, codec: Codec, features: Sequence[Feature], device: torch.device, progress: Progress
) -> Race:
    """A race over the first features; the same ones come again where the recipe's updates take more."""
    recipe = cell.recipe
    count = recipe.max_steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    enough = list(islice(cycle(features), count))
    return Race(cell=cell, model=model, codec=codec, device=device, features=enough, start=start, progress=progress)


def shortened(race: Race, updates: int) -> Race:
    """The same race over fewer updates."""
    recipe = replace(race.cell.recipe, max_steps=updates)
    rows = updates * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    return replace(race, cell=replace(race.cell, recipe=recipe), features=race.features[:rows])


# What must not outlive a contender


@contextmanager
def as_before(model: Any) -> Iterator[None]:
    """Afterwards the model is as it was, whatever Trainer and accelerate hang on it."""
    names, cached = set(vars(model)), vars(model.config).get("use_cache")
    try:
        yield
    finally:
        for name in set(vars(model)) - names:
            delattr(model, name)
        model.config.use_cache = cached


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """No dropout meanwhile: padding to another length would draw other random numbers."""
    rates = [(module, name, getattr(module, name, None)) for module in model.modules() for name in ("p", "dropout")]
    rates = [(module, name, rate) for module, name, rate in rates if isinstance(rate, float)]
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


# Timing


@dataclass(kw_only=True)
class Stopwatch:
    """Times updates but the first; a GPU is waited for at both ends, and nowhere between."""

    device: torch.device
    updates: int
    laps: int = 0
    seconds: float = 0.0

    def lap(self) -> None:
        """An update has ended."""
        self.laps += 1
        if self.laps in (WARMUP_UPDATES, self.updates):
            now = settled(self.device)
            self.seconds = now if self.laps == WARMUP_UPDATES else now - self.seconds


def settled(device: torch.device) -> float:
    """Seconds on the clock once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Peak:
    """The most that is allocated on a GPU from now on."""

    def __init__(self, device: torch.device) -> None:
        """Begins to watch."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def gib(self) -> float | None:
        """The peak so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) / GIB if self._device.type == "cuda" else None
