"""What audits look at: all that a cell's stages leave behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, TypeVar

import torch
from torch import nn

from tunegrid.codecs.base import Codec
from tunegrid.data.sources import Row, identity
from tunegrid.data.splits import Splits
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Answer
from tunegrid.run.build import Checksum, base_type, checkpoint_checksums, checksums, matching_keys, weight_files
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.probe import Probe, probe
from tunegrid.run.serving import Serving
from tunegrid.run.train import Trainer

T = TypeVar("T")
SAMPLE = 8  # rows that are decoded again
CONTEXT = 20  # characters on each side of the first one in which two texts differ


class AbsentError(Exception):
    """What an audit looks at is not there: it says nothing."""


def require(part: object, kind: type[T]) -> T:
    """A part of the evidence; raises AbsentError if there is none, or one of another kind."""
    if not isinstance(part, kind):
        raise AbsentError
    return part


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a cell's run leaves behind; splits and evaluation are None if there was no text, or training stopped."""

    cell: Cell
    codec: Codec
    trainer: Trainer
    splits: Splits | None = None
    evaluation: Evaluation | None = None
    serving: Serving = field(default_factory=Serving)

    @property
    def model(self) -> nn.Module:
        """The model after training."""
        return self.trainer.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.trainer.meter.device

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.trainer.parameters.items() if p.requires_grad}

    @cached_property
    def own(self) -> frozenset[str]:
        """Names of the parameters that the cell's method added."""
        return self.cell.method.own_parameters(self.model)

    @cached_property
    def moved(self) -> frozenset[str]:
        """Names of the parameters that training changed."""
        end_checksums = checksums(self.model.named_parameters())
        return frozenset(name for name, checksum in end_checksums.items() if checksum != self.trainer.before[name])

    @cached_property
    def not_from_checkpoint(self) -> frozenset[str]:
        """Names of the parameters that did not start as a tensor of their name in the checkpoint, or of any name.

        If weights are random, all of them.
        """
        files = tuple(weight_files(self.cell))
        pretrained: Mapping[str, Checksum] = checkpoint_checksums(files, base_type(self.cell))
        return frozenset(
            name
            for name, checksum in self.trainer.before.items()
            if checksum not in {pretrained[key] for key in matching_keys(name, files) or pretrained}
        )

    @cached_property
    def probe(self) -> Probe:
        """What the trained model answers to a few training rows."""
        return probe(self.trainer)

    @property
    def full_probe(self) -> Probe:
        """The same; raises AbsentError if the model's output names no logits."""
        return require(self.probe if self.probe.together else None, Probe)


def sample(items: Sequence[T], count: int = SAMPLE) -> list[T]:
    """The same few each time."""
    return [items[i] for i in Random(0).sample(range(len(items)), count)] if len(items) > count else list(items)


def copies(cell: Cell, rows: Sequence[Row], others: Sequence[Row]) -> list[int]:
    """Places of the rows whose text, by all columns that the cell reads, is among others' texts."""
    columns = (*cell.text, *cell.task.context_columns)
    texts = [identity(row, columns) for row in rows]
    shared_texts = set(texts).intersection(identity(row, columns) for row in others)
    return [i for i, text in enumerate(texts) if text in shared_texts]


def expect_none(odd: Sequence[Any], detail: str, fault: str) -> Answer:
    """Passed if nothing is odd; otherwise how many are, what is wrong with them, and the first ones."""
    return not odd, f"{detail}; {len(odd)} {fault}: {', '.join(map(str, odd[:3]))}" if odd else detail


def differing_parts(text: str, other: str) -> tuple[str, str]:
    """The parts of two texts around the first place in which they differ."""
    start = max(0, first_difference(text, other) - CONTEXT)
    end = start + 2 * CONTEXT
    return text[start:end], other[start:end]


def first_difference(items: Sequence[Any], others: Sequence[Any]) -> int:
    """The first place in which two sequences differ, or the end of the shorter one."""
    for place, (item, other) in enumerate(zip(items, others, strict=False)):
        if item != other:
            return place
    return min(len(items), len(others))
