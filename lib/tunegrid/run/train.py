"""The training loop: trains a model on a codec's features by a recipe, and keeps a log of it.

One loop for every cell. Its unit is the update: one or more micro-batches, one optimizer step, one schedule step. The loss
of an update is the mean over all its targets, however they are cut into micro-batches.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain, islice
from typing import Any

import accelerate
import torch
import transformers as hf
from torch import Tensor, nn

from tunegrid.codecs.base import Batch, Codec, Feature, all_tokens, real_tokens
from tunegrid.codecs.features import chunks, epoch_batches, lengths_of
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import Precision
from tunegrid.record.parts import FirstStep, Ledger, TrainingRecord
from tunegrid.run.device import (
    DoesNotFit,
    fitting,
    free_memory,
    random_states,
    replacements,
    resolve_precision,
    set_random_states,
)
from tunegrid.run.first_step import MOVED, FirstUpdates
from tunegrid.run.meter import Meter, ledger, tensor_bytes
from tunegrid.run.progress import Progress
from tunegrid.run.ranks import ALONE, Ranks, full_tensor, local_shard
from tunegrid.run.stepper import AdamW, Stepper
from tunegrid.run.weights import model_checksums

# What a checkpoint keeps. The rows of `chosen_on` are not kept.
KEPT = (
    "losses", "updates", "learning_rates", "group_rates", "gradient_norms", "clipped_norm", "skipped", "order", "micro_batch",
    "fallbacks", "first_step", "epoch_scores", "chosen_epoch",
)  # fmt: skip


@dataclass(kw_only=True)
class TrainingLog:
    """What happened in one training so far; losses and norms stay on the device until they are fetched.

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

    def note_update(self, loss: Tensor, examples: Sequence[int]) -> None:
        """An update was made, on these rows."""
        self._losses.append(loss)
        self.updates += 1
        self.order = order_after(self.order, examples)

    def fetch(self) -> None:
        """Bring what updates left on the device to the host."""
        self.losses += _fetched(self._losses)
        self.gradient_norms += _fetched(self._norms)
        self._losses, self._norms = [], []
        if self._clipped is not None:
            self.clipped_norm, self._clipped = float(self._clipped), None

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


CHECK_EVERY = 10  # updates between looks at the loss: every look makes a GPU wait
Validate = Callable[[], tuple[float, Sequence[Row]]]  # a score of the model, higher is better, and the rows it was taken on


class Trainer:
    """One cell's training: made before it runs; audits look at it afterwards.

    Attributes:
        parameters: the model's, by name; `before` holds their checksums before training.
        stepped: what the optimizer steps, by name: these parameters, or this rank's parts of them.
        by_definition: AdamW beside the optimizer's first steps; None where something else moves weights, too.
        log: what happened so far; `run` does not repeat updates that were made before it.
        sharded_model: the model, or its copy that ranks share out; `ddp_model` is what forward passes of training go through.
        last_group: the micro-batches of the last update, those of all ranks.
        paused: whether it stopped after its first updates, as asked.
        best: weights of the best epoch so far, in the host's memory; None where no epoch was scored yet.
    """

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        codec: Codec,
        features: Sequence[Feature],
        meter: Meter,
        ranks: Ranks = ALONE,
        after_update: Callable[["Trainer"], None] = lambda trainer: None,
    ) -> None:
        """Make optimizer, schedule and precision for training `model` on `features`.

        `after_update` is called after each update with this trainer, for example to save its state. Raises InputError
        without features.
        """
        if not features:
            raise InputError(f"no training row fits {cell.id}: max_length {cell.recipe.max_length} cuts every answer off")
        self.cell, self.model, self.codec, self.features, self.meter, self.ranks = cell, model, codec, features, meter, ranks
        cell.method.plan(model, self.total)
        self.log = TrainingLog(
            precision=resolve_precision(cell, meter.device)[0],
            micro_batch=cell.recipe.per_device_train_batch_size,
            fallbacks=replacements(cell, meter.device),
        )
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a session trains many cells
        mixed = {"fp32": "no"}.get(self.log.precision, self.log.precision)
        self.accelerator = accelerate.Accelerator(mixed_precision=mixed, cpu=meter.device.type == "cpu")
        self.parameters, self.before = dict(model.named_parameters()), model_checksums(model)
        self.sharded_model = ranks.sharded_model(model, cell, self.log.precision)
        self.stepped = dict(self.sharded_model.named_parameters())
        self.stepper = Stepper(cell, model, self.sharded_model, self.accelerator, self.total)
        self.by_definition = AdamW(self.optimizer.optimizer, self.stepped) if self.stepper.steps_alone else None
        self.ddp_model = ranks.ddp_model(self.sharded_model)
        self.last_group: Sequence[Sequence[Feature]] = ()
        self.paused, self._end = False, self.total
        self.best: dict[str, Tensor] | None = None
        self._after_update = after_update
        self._first = FirstUpdates(cell, model, self.stepped)
        self._random_states: dict[str, Tensor] | None = None

    @property
    def total(self) -> int:
        """Updates in all."""
        return self.cell.recipe.planned_updates(len(self.features))

    @property
    def optimizer(self) -> Any:
        """Accelerate's, around the recipe's."""
        return self.stepper.optimizer

    @property
    def trained(self) -> list[Tensor]:
        """What the optimizer changes."""
        return [p for p in self.stepped.values() if p.requires_grad]

    def start_from(self, figures: Mapping[str, Any]) -> None:
        """Take over what was measured of the model before the first update: the record has it beside that update's figures."""
        self.log.first_step |= figures

    def run(self, progress: Progress, validate: Validate | None = None, *, first_updates: int | None = None) -> TrainingRecord:
        """Train to the end, or to the first loss that is not a number. Of several epochs, keep the best one's weights.

        Of `first_updates` it makes just so many of the same course, and the order is that of the rows of the whole course.
        """
        self._end = min(first_updates or self.total, self.total)
        hf.set_seed(self.ranks.seed(self.cell.profile.seed))  # dropout: the same whatever happened while the model was built
        if self._random_states:
            set_random_states(self.meter.device, self._random_states)
        per_epoch = self.cell.recipe.updates_per_epoch(len(self.features))
        for epoch in range(max(0, self.log.updates - 1) // per_epoch, math.ceil(self.total / per_epoch)):
            with self.ranks.training(self.model, self.sharded_model):
                self._train_epoch(epoch, epoch * per_epoch, progress)
            if self.log.stopped:
                return self.part()
            if first_updates and self.log.updates == self._end:
                self.paused = True
                return replace(self.part(), order=self.planned_order())
            if validate and self.cell.recipe.num_train_epochs > 1 and len(self.log.epoch_scores) == epoch:
                with self.meter.phase("validate"):
                    score, rows = validate()
                with self.meter.phase("keep_best"):
                    self._keep_better(score, rows)
        if self.best is not None:
            with self.meter.phase("keep_best"):
                self.model.load_state_dict(self.best, strict=False)
                self.ranks.copy_to_sharded(self.model, self.sharded_model)
        return self.part()

    def planned_order(self) -> str:
        """The log's order of rows as it will be after the last update."""
        order = self.log.order
        epochs = range(math.ceil(self.total / self.cell.recipe.updates_per_epoch(len(self.features))))
        for group in islice(chain.from_iterable(map(self.updates, epochs)), self.log.updates, self.total):
            order = order_after(order, examples_of(group))
        return order

    def not_run(self, reason: str) -> TrainingRecord:
        """The record's part of a training that must not begin, and why."""
        return replace(self.part(), stopped=reason)

    def part(self) -> TrainingRecord:
        """The record's part of what was trained so far; tokens are those of all ranks, which must ask together."""
        self._fetch()
        tokens = sum(self.ranks.gathered(sum(update.tokens for update in self.meter.updates)))
        return self.log.part(seconds=self.meter.train_seconds(), tokens=tokens)

    def _train_epoch(self, epoch: int, before: int, progress: Progress) -> None:
        """Train the rest of an epoch, which began after `before` updates."""
        self.ddp_model.train()
        for group in islice(self.updates(epoch), self.log.updates - before, self._end - before):
            self.update(group)
            self._look(progress)
            if self.log.stopped:
                return
            self._after_update(self)

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, and the log so far, as nested mappings of tensors and plain values."""
        self._fetch()
        return {
            "weights": {name: p.detach() for name, p in self.stepped.items() if p.requires_grad},
            "best": self.best or {},
            "log": self.log.state_dict(),
            "steps": self.stepper.state_dict(),
            "random": random_states(self.meter.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict`; `run` goes on from there, to the same weights, bit for bit on a CPU."""
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                local_shard(self.stepped[name]).copy_(tensor)
        self.ranks.copy_from_sharded(self.model, self.sharded_model)
        self.stepper.load_state_dict(state["steps"], self.ranks)
        self.log.load_state_dict(state["log"])
        self.best = dict(state.get("best", {})) or None
        self._random_states = state["random"]
        resumed = f"resumed at update {self.log.updates} of {self.total}; seconds and throughput are of the rest"
        self.log.fallbacks.append(resumed)

    def updates(self, epoch: int) -> Iterator[Sequence[list[Feature]]]:
        """The epoch's updates, each a list of micro-batches."""
        recipe = self.cell.recipe
        batches = epoch_batches(lengths_of(self.features), recipe.per_device_train_batch_size, self.cell.profile.seed, epoch)
        for group in chunks(batches, recipe.gradient_accumulation_steps):
            yield [[self.features[index] for index in batch] for batch in group]

    def update(self, group: Sequence[Sequence[Feature]]) -> Tensor:
        """One optimizer update on several micro-batches; return the mean loss over all their targets.

        Where memory runs out, the same rows are cut into micro-batches of half the size, accumulated to the same update.
        """
        while True:
            self.last_group = [piece for features in group for piece in chunks(features, self.log.micro_batch)]
            try:
                return self._step()
            except DoesNotFit as error:
                cause = str(error)
            self._halve(cause)  # out here, where the error no longer keeps the failed pass alive

    def _halve(self, cause: str) -> None:
        size = self.log.micro_batch // 2
        where = f"update {self.log.updates + 1} of {self.total}"
        if self.ranks.count > 1:  # which may have summed some of their gradients already
            rank = f"rank {self.ranks.rank} of {self.ranks.count}"
            way_out = "take more ranks" + ("" if self.ranks.holds_parts else ", or share out its weights, too, with --fsdp")
            raise InputError(f"{self.cell.id} does not fit: memory runs out at {where} on {rank} ({cause}); {way_out}")
        if not size:
            raise InputError(f"{self.cell.id} does not fit: memory runs out at {where} with one row at a time ({cause})")
        change = f"micro-batches of {size} in place of {self.log.micro_batch}, accumulated to the same update"
        self.log.fallbacks.append(f"out of memory at {where}: {change}")
        self.log.micro_batch = size
        self.optimizer.zero_grad()
        free_memory(self.meter.device)

    def _step(self) -> Tensor:
        own = self._own(self.last_group)
        with self.meter.update(samples=sum(map(len, own))) as update:
            batches = self._collated(own)
            update.tokens, update.padded_tokens = sum(map(real_tokens, batches)), sum(map(all_tokens, batches))
            loss = self._backward(batches, len(own))
            try:
                with fitting():
                    self.log.note_norm(*self.stepper.clip(again=not self.log.updates))
                    self._settle()
                    if not self.log.updates:
                        self.log.first_step |= self._first.gradients(self.meter.device)
                    rates, scheduled = self._stepped()
            except DoesNotFit as error:  # activations are gone by now: fewer rows at once would not help
                cause = f"in the optimizer's step of update {self.log.updates + 1} ({error})"
                raise InputError(f"{self.cell.id} does not fit: memory runs out {cause}") from None
            self.log.learning_rates.append(scheduled)
            self.log.group_rates.append([*rates])
            if not self.stepper.settles_late:
                self._settle()
            if self.log.ledger is None:  # while gradients and optimizer state are in place; each update has the same bytes
                self.log.reached = frozenset(name for name, p in self.stepped.items() if p.grad is not None)
                gradients = tensor_bytes(p.grad for p in self.trained if p.grad is not None)
                self.log.ledger = ledger(self.sharded_model, self.optimizer, gradients)
            self.optimizer.zero_grad()
        self.log.note_update(loss, examples_of(self.last_group))
        if self.log.updates == min(MOVED, self._end):
            self.log.first_step |= self._first.moved()
        return loss

    def _stepped(self) -> tuple[list[float], float]:
        """Step the optimizer, and AdamW by its definition beside the first steps; return rates as the stepper does."""
        if self.by_definition is None or self.log.updates >= MOVED:
            return self.stepper.step(self.log.updates)
        self.by_definition.before_step(self.log.updates)
        rates = self.stepper.step(self.log.updates)
        self.by_definition.after_step(self.log.updates)
        return rates

    def _settle(self) -> None:
        lost = self.stepper.settle()
        if lost is not None:
            self.log.skipped.append(lost)

    def _fetch(self) -> None:
        """Bring what updates left on the device to the host."""
        self._settle()
        self.log.fetch()

    def divisors(self, batches: Sequence[Batch]) -> Sequence[int | float | Tensor]:
        """The divisor of each micro-batch's summed loss: the targets of the whole update, over all ranks."""
        count = sum(self.codec.targets(batch) for batch in batches)
        return [self.ranks.total(count, self.meter.device)] * len(batches)

    def accumulated(self, group: Sequence[Sequence[Feature]], names: Iterable[str]) -> tuple[Tensor, list[Tensor]]:
        """The loss and gradients that an update on these micro-batches would have; nothing is applied or kept.

        Gradients are those of some parameters. Where there are several ranks, all of them must ask.
        """
        self.optimizer.zero_grad()
        own = self._own(group)
        loss = self._backward(self._collated(own), len(own))
        wanted = [self.stepped[name] for name in names]
        scale = self.stepper.loss_scale.factor
        gradients = [full_tensor(torch.zeros_like(p) if p.grad is None else p.grad / scale) for p in wanted]
        self.optimizer.zero_grad()
        return loss, gradients

    def _own(self, group: Sequence[Sequence[Feature]]) -> Sequence[Sequence[Feature]]:
        """This rank's micro-batches of an update; smaller ones where memory ran out."""
        if self.ranks.count > 1 or self.log.micro_batch < self.cell.recipe.per_device_train_batch_size:
            return self.ranks.share(group, self.log.micro_batch)
        return group

    def _collated(self, own: Sequence[Sequence[Feature]]) -> list[Batch]:
        return [self.codec.collate(features) for features in own if features]

    def _backward(self, batches: Sequence[Batch], passes: int) -> Tensor:
        """Add the gradients of the update's mean loss, of all ranks' batches; return that loss."""
        total = torch.zeros((), device=self.meter.device)
        divisors = self.divisors(batches)
        if idle := max(passes, 1) - len(batches):  # others have rows, and wait for this rank's gradients: zeros
            batches = [*batches, *[self.codec.collate(self.features[:1])] * idle]
            divisors = [*divisors, *[math.inf] * idle]
        with fitting():
            if self.ranks.count > 1:  # summed over the ranks with the last micro-batch
                self._penalize()
            for number, (batch, count) in enumerate(zip(batches, divisors, strict=True), 1):
                with self.ranks.no_sync(self.ddp_model) if number < len(batches) else nullcontext():
                    total += self._pass(batch, count)
            if self.ranks.count == 1:
                self._penalize()
        return self.ranks.summed(total)

    def _pass(self, batch: Batch, count: float | Tensor) -> Tensor:
        """Add a batch's gradients; return its part of the loss without its graph, whose room the next batch may need."""
        with self.accelerator.autocast():
            loss = self.codec.loss(self.ddp_model, self.codec.placed(batch, self.meter.device)) / count
        self.accelerator.backward(loss)
        return loss.detach()

    def _penalize(self) -> None:
        """Add the gradients of the method's penalty, once over all ranks."""
        penalty = self.cell.method.penalty(self.model)
        if penalty is not None:
            self.accelerator.backward(penalty / self.ranks.count)

    def _look(self, progress: Progress) -> None:
        """Fetch the losses now and then: for the progress line, and to stop at one that is not a number."""
        done = self.log.updates
        if done % CHECK_EVERY and done != self._end:
            return
        self._fetch()
        bad = next((i for i, loss in enumerate(self.log.losses) if not math.isfinite(loss)), None)
        if bad is not None:
            self.log.stopped = f"loss is {self.log.losses[bad]} at update {bad + 1} of {self.total}"
        rate = self.meter.recent_rate(CHECK_EVERY, self.ranks.count)
        progress.at(done, self.total, f"loss {self.log.losses[-1]:.3f}  {rate}")

    def _keep_better(self, score: float, rows: Sequence[Row]) -> None:
        """Keep the epoch's weights where they score higher than those of every epoch before."""
        best = self.best is None or score > max(self.log.epoch_scores)
        self.log.epoch_scores.append(score)
        self.log.chosen_on = rows
        if best:
            self.log.chosen_epoch = len(self.log.epoch_scores)
            # On the host: on the device it would stand in the peaks of all that follows.
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in self.model.named_parameters() if p.requires_grad}


def examples_of(group: Sequence[Sequence[Feature]]) -> list[int]:
    """The rows of an update's micro-batches."""
    return [feature.example for features in group for feature in features]
