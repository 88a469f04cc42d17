"""The course of a training. In: what `tunegrid.run.training` appends. Out: `Training`, which the record and audits read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunegrid.data.sources import Row

# The fields of `Training` in a trainer's state. Losses are kept apart; the rows of `chosen_on` are not kept.
COURSE = (
    "updates", "memory", "learning_rates", "group_rates", "gradient_norms", "clipped_norm", "epoch_scores", "chosen_epoch",
    "skipped", "order", "micro_batch", "fallbacks", "first_step",
)  # fmt: skip


@dataclass(kw_only=True)
class Training:
    """The course of one training.

    Attributes:
        losses: mean loss of each update, in nats per target.
        stopped: why training ended early, or None.
        order: a hash of the rows of each update, in order; equal orders have equal hashes.
        micro_batch: rows of a forward pass at the end; smaller than the recipe's where memory ran out.
        fallbacks: a sentence for every deviation from the recipe.
        epoch_scores: validation score after each epoch, where the recipe has several.
        chosen_epoch: the epoch whose weights were kept; None where there was nothing to choose.
        chosen_on: the rows whose score chose it.
        skipped: updates that fp16 lost to an overflow; the schedule does not advance there.
        group_rates: the learning rate of every parameter group in each update.
        gradient_norms: total norm of the gradients before clipping in each update; None where the recipe does not clip.
        clipped_norm: the same after clipping, in the first update.
        first_step: figures that tell a change without statistics: `tunegrid.run.probe`'s, and those of the first update.
    """

    losses: list[float] = field(default_factory=list)
    updates: int = 0
    learning_rates: list[float] = field(default_factory=list)
    group_rates: list[list[float]] = field(default_factory=list)
    gradient_norms: list[float | None] = field(default_factory=list)
    clipped_norm: float | None = None
    epoch_scores: list[float] = field(default_factory=list)
    chosen_epoch: int | None = None
    chosen_on: Sequence[Row] = ()
    skipped: list[int] = field(default_factory=list)
    stopped: str | None = None
    precision: str = "fp32"
    order: str = ""
    micro_batch: int = 0
    fallbacks: list[str] = field(default_factory=list)
    memory: dict[str, int | None] = field(default_factory=dict)
    first_step: dict[str, Any] = field(default_factory=dict)
