"""Defines the evidence that audits examine, and helpers that several audits share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from torch import nn

from tunegrid.codecs.base import Codec
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row, identity
from tunegrid.data.splits import Splits
from tunegrid.grid.cells import Cell
from tunegrid.run.build import (
    Checksum,
    base_type,
    checkpoint_checksums,
    checksums,
    matching_keys,
    weight_files,
)
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.probe import Probe, probe
from tunegrid.run.serving import Serving
from tunegrid.run.train import Trainer
from tunegrid.words import CONTEXT, first_difference

T = TypeVar("T")
SAMPLE = 8  # default size of a sample


class AbsentError(Exception):
    """Raised if the run left nothing for an audit to examine, so the audit is skipped."""


def require(value: object, kind: type[T]) -> T:
    """Returns `value` if it is an instance of `kind`; otherwise raises AbsentError."""
    if not isinstance(value, kind):
        raise AbsentError
    return value


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The objects that a cell's run leaves behind.

    `splits` is None if the run used no text; `evaluation` is None unless rows were scored.
    """

    cell: Cell
    codec: Codec
    trainer: Trainer
    splits: Splits | None = None
    evaluation: Evaluation | None = None
    serving: Serving = field(default_factory=Serving)

    @property
    def model(self) -> nn.Module:
        """The cell's model, with its adapter if it has one."""
        return self.trainer.model

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.trainer.meter.device

    @property
    def text_codec(self) -> GenerateCodec:
        """The codec of a cell that generates text; raises AbsentError for any other cell."""
        return require(self.codec, GenerateCodec)  # type: ignore[type-abstract]

    @property
    def train_rows(self) -> Sequence[Row]:
        """The training rows; raises AbsentError if the run used no text."""
        return require(self.splits, Splits).train

    @property
    def scored(self) -> Evaluation:
        """The evaluation; raises AbsentError if nothing was scored."""
        return require(self.evaluation, Evaluation)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by name."""
        return {name: p for name, p in self.trainer.parameters.items() if p.requires_grad}

    @cached_property
    def own(self) -> frozenset[str]:
        """Names of the parameters that the cell's method added."""
        return self.cell.method.own_parameters(self.model)

    @cached_property
    def moved(self) -> frozenset[str]:
        """Names of the parameters that training changed."""
        end = checksums(self.model.named_parameters())
        start = self.trainer.before
        return frozenset(name for name, checksum in end.items() if checksum != start[name])

    @cached_property
    def checkpoint_files(self) -> tuple[Path, ...]:
        """The checkpoint's weight files; empty if the weights are random."""
        return tuple(weight_files(self.cell))

    @cached_property
    def not_from_checkpoint(self) -> frozenset[str]:
        """Names of parameters whose initial values match no checkpoint tensor of the same name.

        A parameter whose name the checkpoint lacks is compared with all of the checkpoint's
        tensors. If the weights are random, all names are returned.
        """
        files = self.checkpoint_files
        pretrained: Mapping[str, Checksum] = checkpoint_checksums(files, base_type(self.cell))
        names = set()
        for name, checksum in self.trainer.before.items():
            keys = matching_keys(name, files) or pretrained
            if checksum not in {pretrained[key] for key in keys}:
                names.add(name)
        return frozenset(names)

    @cached_property
    def probe(self) -> Probe:
        """The results of probing the trained model with a few training rows."""
        return probe(self.trainer)

    @property
    def full_probe(self) -> Probe:
        """The probe; raises AbsentError if the model's output has no logits."""
        if not self.probe.together:
            raise AbsentError
        return self.probe


def sample(items: Sequence[T], count: int = SAMPLE) -> list[T]:
    """Picks at most `count` items, the same ones every time."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in Random(0).sample(range(len(items)), count)]


def copies(cell: Cell, rows: Sequence[Row], others: Sequence[Row]) -> list[int]:
    """Indices of rows whose text, in the columns that the cell reads, also occurs in `others`."""
    columns = (*cell.text, *cell.task.context_columns)
    known_texts = {identity(row, columns) for row in others}
    return [i for i, row in enumerate(rows) if identity(row, columns) in known_texts]


def expect_none(faults: Sequence[Any], detail: str, predicate: str) -> tuple[bool, str]:
    """Passes if there are no faults; otherwise fails with their number and the first three."""
    if not faults:
        return True, detail
    return False, f"{detail}; {len(faults)} {predicate}: {', '.join(map(str, faults[:3]))}"


def worst_gap(gaps: Iterable[float]) -> float:
    """The largest gap; NaN, which `max` might pass over, counts as the largest."""
    return max(gaps, key=lambda gap: (math.isnan(gap), gap))


def differing_parts(text: str, other: str) -> tuple[str, str]:
    """The parts of two texts around the first character at which they differ."""
    start = max(0, first_difference(text, other) - CONTEXT)
    end = start + 2 * CONTEXT
    return text[start:end], other[start:end]
