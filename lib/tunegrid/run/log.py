"""The training log: what a trainer notes while it trains. Audits read it, and the record's part is made of it.

Losses and norms stay on the device until they are fetched, so that an update does not wait for them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from tunegrid.data.sources import Row
from tunegrid.grid.recipes import Precision
from tunegrid.record.parts import FirstStep, Ledger, TrainingRecord

# What a checkpoint keeps. The rows of `chosen_on` are not kept.
KEPT = (
    "losses", "updates", "learning_rates", "group_rates", "gradient_norms", "clipped_norm", "skipped", "order", "micro_batch",
    "fallbacks", "first_step", "epoch_scores", "chosen_epoch",
)  # fmt: skip


@dataclass(kw_only=True)
class TrainingLog:
    """What happened in one training so far.

    Attributes:
        precision: what the device could do.
        micro_batch: rows of a forward pass now; smaller than the recipe's where memory ran out.
        fallbacks: a sentence for every deviation from the recipe.
        updates: how many were made; all lists below have an entry for each.
        losses: mean loss of each update, in nats per target; those that were not fetched yet are missing.
        learning_rates: the first parameter group's.
        group_rates: of every parameter group.
        gradient_norms: total norm of the gradients before clipping; None where the recipe does not clip.
        clipped_norm: the same after clipping, in the first update.
        skipped: updates that fp16 lost to an overflow; the schedule does not advance there.
        order: a hash of the rows of each update, in order; equal orders have equal hashes.
        reached: names of parameters that got a gradient.
        ledger: bytes of weights, gradients and optimizer state; None before the first update.
        first_step: figures that tell a change without statistics: those taken before the first update, and those of it.
        epoch_scores: validation score after each epoch, where the recipe has several.
        chosen_epoch: the epoch whose weights were kept; None where there was nothing to choose.
        chosen_on: the rows whose score chose it.
        stopped: why training ended early, or None.
    """

    precision: Precision
    micro_batch: int
    fallbacks: list[str]
    updates: int = 0
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    group_rates: list[list[float]] = field(default_factory=list)
    gradient_norms: list[float | None] = field(default_factory=list)
    clipped_norm: float | None = None
    skipped: list[int] = field(default_factory=list)
    order: str = ""
    reached: frozenset[str] = frozenset()
    ledger: Ledger | None = None
    first_step: dict[str, Any] = field(default_factory=dict)
    epoch_scores: list[float] = field(default_factory=list)
    chosen_epoch: int | None = None
    chosen_on: Sequence[Row] = ()
    stopped: str | None = None
    _losses: list[Tensor] = field(default_factory=list, init=False, repr=False)  # not fetched yet, as are the norms
    _norms: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _clipped: Tensor | None = field(default=None, init=False, repr=False)

    def note_norm(self, before: Tensor | None, after: Tensor | None) -> None:
        """The norm of an update's gradients before clipping, where they are clipped; of the first update's, after it, too."""
        if before is None:
            self.gradient_norms.append(None)
        else:
            self._norms.append(before)
        if after is not None:
            self._clipped = after

    def note_rates(self, rates: Sequence[float], scheduled: float) -> None:
        """The rates that the next update has: each group's, and the schedule's."""
        self.learning_rates.append(scheduled)
        self.group_rates.append([*rates])

    def note_update(self, loss: Tensor, examples: Sequence[int]) -> None:
        """An update was made, on these rows."""
        self._losses.append(loss)
        self.updates += 1
        self.order = order_after(self.order, examples)

    def note_epoch(self, score: float, rows: Sequence[Row], best: bool) -> None:
        """An epoch ended with this score on these rows; whether it is the best so far."""
        self.epoch_scores.append(score)
        self.chosen_on = rows
        if best:
            self.chosen_epoch = len(self.epoch_scores)

    def fetch(self) -> None:
        """Bring what updates left on the device to the host."""
        self.losses += _fetched(self._losses)
        self.gradient_norms += _fetched(self._norms)
        self._losses, self._norms = [], []
        if self._clipped is not None:
            self.clipped_norm, self._clipped = float(self._clipped), None

    def first_not_finite(self) -> int | None:
        """The first update whose loss is not a number, counted from 0, of those that were fetched."""
        return next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), None)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values."""
        self.fetch()
        kept = {name: copy(getattr(self, name)) for name in KEPT}
        return kept | {"reached": sorted(self.reached), "ledger": vars(self.ledger) if self.ledger else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        for name in KEPT:
            setattr(self, name, state[name])
        self.reached = frozenset(state["reached"])
        self.ledger = Ledger(**state["ledger"]) if state["ledger"] else None

    def part(self, *, seconds: float, tokens: int) -> TrainingRecord:
        """The record's part: what is told of a training that ended, and what its meter measured."""
        self.fetch()
        return TrainingRecord(
            seconds=seconds,
            tokens=tokens,
            updates=self.updates,
            precision=self.precision,
            micro_batch=self.micro_batch,
            fallbacks=list(self.fallbacks),
            order=self.order,
            losses=list(self.losses),
            final_learning_rate=self.learning_rates[-1] if self.learning_rates else None,
            gradient_norm=_finite(self.gradient_norms[0]) if self.gradient_norms else None,
            clipped_norm=_finite(self.clipped_norm),
            first_step=FirstStep(**self.first_step) if set(self.first_step) == set(FirstStep.__annotations__) else None,
            epoch_scores=list(self.epoch_scores),
            chosen_epoch=self.chosen_epoch,
            stopped=self.stopped,
        )


def order_after(order: str, examples: Sequence[int]) -> str:
    """The hash of an order of rows to which an update on these is added."""
    return sha256(f"{order}{list(examples)}".encode()).hexdigest()[:16]


def _fetched(tensors: Iterable[Tensor]) -> list[float]:
    waiting = list(tensors)
    values: list[float] = torch.stack(waiting).tolist() if waiting else []
    return values


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
