"""Trains a model on a codec's features as the recipe says; one loop serves all cells.

The loop's unit is the update: one or more micro-batches, one optimizer step, one schedule step. The
loss of an update is the mean over all its targets, however they are split into micro-batches.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from hashlib import sha256
from itertools import chain, islice
from typing import Any

import accelerate
import torch
import transformers as hf
from torch import Tensor, nn

from tunegrid.codecs.base import Batch, Codec, Feature, token_counts
from tunegrid.codecs.features import chunks, epoch_batches, get_lengths
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Method
from tunegrid.grid.recipes import Precision
from tunegrid.record.record import FirstStep, Ledger, TrainingRecord, jsonable
from tunegrid.run.adamw import AdamW
from tunegrid.run.build import checksums
from tunegrid.run.device import (
    DoesNotFit,
    check_memory,
    free_memory,
    random_states,
    resolve_precision,
    resolve_quantization,
    set_random_states,
)
from tunegrid.run.first_updates import MOVED, FirstUpdates
from tunegrid.run.meter import Meter, Progress, ledger, tensor_bytes
from tunegrid.run.ranks import ALONE, SEED_STEP, SEEDS, Ranks, full_tensor, local_shard
from tunegrid.run.watch import watch_update

CHECK_EVERY = 10  # updates between checks of the loss, each of which stalls a GPU
# In nats. At a lower loss, the gradient is zero, or so small that fp32 is off by a percent.
LEAST_LOSS = 1e-5
# Returns the model's score (higher is better) and the rows it was scored on.
Validate = Callable[[], tuple[float, Sequence[Row]]]


@dataclass(kw_only=True)
class TrainingLog:
    """A training run's log so far, saved in checkpoints; most lists have one entry per update."""

    precision: Precision  # as resolved for the device
    micro_batch: int  # current rows per forward pass; fewer than the recipe's if memory ran out
    fallbacks: list[str]  # one sentence per deviation from the recipe
    updates: int = 0
    # Mean loss of each update, in nats per target; losses still on the device are missing.
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)  # the first parameter group's
    group_rates: list[list[float]] = field(default_factory=list)  # of every parameter group
    # Total norms before clipping; empty if the recipe does not clip.
    gradient_norms: list[float] = field(default_factory=list)
    clipped_norms: list[float] = field(default_factory=list)  # total norms after clipping
    # Updates that fp16 lost to an overflow, during which the schedule does not advance.
    skipped: list[int] = field(default_factory=list)
    order: str = ""  # hash of every update's rows, in order
    # How the first and the last update ran; see `watch_update`.
    watched: list[dict[str, Any]] = field(default_factory=list)
    moving_updates: int = 0  # number of updates after the first one that moved weights
    # Updates that began with gradients left over from the previous one.
    stale: list[int] = field(default_factory=list)
    # For each parameter, the number of moving updates in which it had no gradient; zeros are
    # omitted.
    idle: dict[str, int] = field(default_factory=dict)
    # Bytes of weights, gradients and optimizer state; None before the first update.
    ledger: Ledger | None = None
    # Fields of `FirstStep`, taken before and during the first updates.
    first_step: dict[str, Any] = field(default_factory=dict)
    # Validation score after each epoch, if the recipe has several epochs.
    epoch_scores: list[float] = field(default_factory=list)
    chosen_epoch: int | None = None  # the epoch whose weights were kept; None without a choice
    stopped: str | None = None  # why training ended early


class Trainer:
    """Trains one cell, and keeps what audits inspect afterwards.

    Attributes:
        parameters: the model's parameters, by name; `before` holds their checksums before training.
        stepped: the optimizer's tensors, by name: these parameters, or this rank's shards of them.
        trained: the tensors in `stepped` that the optimizer changes.
        adamw: a reference AdamW that follows some of the optimizer's steps.
        log: the log so far; `run` does not repeat logged updates. `total` is the number of planned
            updates.
        sharded_model: the model, or the copy of it that FSDP shards over the ranks.
        ddp_model: the module that training calls.
        last_group: the last update's micro-batches, for all ranks.
        paused: whether training stopped after its first updates, as requested.
        best: the best epoch's weights so far, on the host; None if no epoch was scored.
        chosen_on: the rows on which the epochs were scored.
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
        """Prepares training. Raises InputError if there are no features."""
        if not features:
            limit = cell.recipe.max_length
            cause = f"max_length {limit} cuts every answer off"
            raise InputError(f"no training row fits {cell.id}: {cause}")
        self.cell = cell
        self.model = model
        self.codec = codec
        self.features = features
        self.meter = meter
        self.ranks = ranks
        self.total = cell.recipe.planned_updates(len(features))
        cell.method.plan(model, self.total)
        precision, change = resolve_precision(cell, meter.device)
        changes = (change, resolve_quantization(cell, meter.device)[1], cell.new_parts)
        self.log = TrainingLog(
            precision=precision,
            micro_batch=cell.recipe.per_device_train_batch_size,
            fallbacks=[sentence for sentence in changes if sentence],
        )
        # A session trains many cells, but accelerate's state is global.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = accelerate.Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=meter.device.type == "cpu",
        )
        self.parameters = dict(model.named_parameters())
        self.before = checksums(model.named_parameters())
        self.sharded_model = model
        if ranks.holds_parts:
            self.sharded_model = ranks.sharded_model(model, cell, precision)
        self.stepped = dict(self.sharded_model.named_parameters())
        self.stepper = Stepper(cell, model, self.sharded_model, self.accelerator, self.total)
        self.optimizer = self.stepper.optimizer
        self.trained_names = [name for name, p in self.stepped.items() if p.requires_grad]
        # Both are read after `Stepper` is made, since a method's optimizer may freeze some weights.
        self.trained = [self.stepped[name] for name in self.trained_names]
        # False if a loss scale or the method also affects how weights move.
        is_alone = not self.accelerator.scaler and not self.stepper.acts_after_step
        self.adamw = AdamW(self.optimizer.optimizer, self.stepped if is_alone else {})
        self.ddp_model = self.sharded_model
        if ranks.count > 1 and not ranks.holds_parts:  # a sharded model sums gradients by itself
            self.ddp_model = ranks.ddp_model(self.sharded_model)
        self.last_group: Sequence[Sequence[Feature]] = ()
        self.paused = False
        self._end = self.total
        self.best: dict[str, Tensor] | None = None
        self.chosen_on: Sequence[Row] = ()
        self._after_update = after_update
        self._first = FirstUpdates(cell, model, self.stepped)
        self._random_states: dict[str, Tensor] | None = None
        # Values for the log's lists, and counts for `idle`, that are still on the device.
        self._on_device = defaultdict[str, list[Tensor]](list)
        self._idle = torch.zeros(len(self.trained), dtype=torch.int64, device=meter.device)

    def start_from(self, figures: Mapping[str, Any]) -> None:
        """Logs figures taken from the model before its first update."""
        self.log.first_step |= figures

    def run(
        self,
        progress: Progress,
        validate: Validate | None = None,
        *,
        first_updates: int | None = None,
    ) -> TrainingRecord:
        """Trains to the end, or for `first_updates` updates; stops early if a loss is not finite.

        If `validate` scores several epochs, the model ends with the weights of the best epoch.
        """
        log = self.log
        self._end = min(first_updates or self.total, self.total)
        # Dropout does not depend on how the model was built; each rank has its own.
        hf.set_seed((self.cell.profile.seed + self.ranks.rank * SEED_STEP) % SEEDS)
        if self._random_states:
            set_random_states(self.meter.device, self._random_states)
        epoch_updates = self.cell.recipe.updates_per_epoch(len(self.features))
        epochs = range(math.ceil(self.total / epoch_updates))
        for epoch in epochs[max(0, log.updates - 1) // epoch_updates :]:
            start = epoch * epoch_updates
            with self.ranks.train_parts(self.model, self.sharded_model):
                self.ddp_model.train()
                for group in islice(self.updates(epoch), log.updates - start, self._end - start):
                    self.update(group)
                    if log.updates % CHECK_EVERY == 0 or log.updates == self._end:
                        self._check_losses(progress)
                    if log.stopped:
                        break
                    self._after_update(self)
            if log.stopped:
                return self.part()
            if first_updates and log.updates == self._end:
                self.paused = True  # the record's `order` covers the whole training
                all_groups = chain.from_iterable(map(self.updates, epochs))
                order = reduce(order_after, islice(all_groups, log.updates, self.total), log.order)
                return replace(self.part(), order=order)
            has_choice = self.cell.recipe.num_train_epochs > 1
            if validate and has_choice and len(log.epoch_scores) == epoch:
                with self.meter.phase("validate"):
                    score, rows = validate()
                with self.meter.phase("keep_best"):
                    self._keep_better(score, rows)
        if self.best is not None:
            with self.meter.phase("keep_best"):
                self.model.load_state_dict(self.best, strict=False)
                self.ranks.copy_weights(self.model, self.sharded_model, back=True)
        return self.part()

    def _check_losses(self, progress: Progress) -> None:
        """Fetches losses and shows the last one; stops training if any loss is not finite."""
        log = self.log
        self._fetch()
        self.meter.note_tensors((self.best or {}).values(), is_last=log.updates == self._end)
        for number, loss in enumerate(log.losses, 1):
            if not math.isfinite(loss):
                log.stopped = f"loss is {loss} at update {number} of {self.total}"
                break
        updates = self.meter.updates[-CHECK_EVERY:]
        samples = self.ranks.count * sum(update.samples for update in updates)
        rate = samples / (sum(self.meter.durations(updates)) or math.inf)
        text = f"loss {log.losses[-1]:.3f}  {rate:.0f} samples/s"
        progress("train", log.updates, self.total, text)

    def part(self) -> TrainingRecord:
        """The record of training so far, with tokens of all ranks; all ranks must call this."""
        self._fetch()
        log = self.log
        tokens = sum(update.tokens for update in self.meter.updates)
        first_step = None
        if set(log.first_step) == set(FirstStep.__annotations__):
            first_step = FirstStep(**log.first_step)
        return TrainingRecord(
            seconds=sum(self.meter.durations(self.meter.updates)),
            tokens=sum(self.ranks.gather(tokens)),
            updates=log.updates,
            precision=log.precision,
            micro_batch=log.micro_batch,
            fallbacks=[*log.fallbacks],
            order=log.order,
            losses=[*log.losses],
            final_learning_rate=log.learning_rates[-1] if log.learning_rates else None,
            gradient_norm=jsonable(log.gradient_norms[0]) if log.gradient_norms else None,
            clipped_norm=jsonable(log.clipped_norms[0]) if log.clipped_norms else None,
            first_step=first_step,
            epoch_scores=[*log.epoch_scores],
            chosen_epoch=log.chosen_epoch,
            stopped=log.stopped,
        )

    def state_dict(self) -> dict[str, Any]:
        """The log and everything the next update depends on, as nested tensors and plain values."""
        self._fetch()
        return {
            "weights": {name: p.detach() for name, p in self.stepped.items() if p.requires_grad},
            "best": self.best or {},
            "log": asdict(self.log),
            "steps": self.stepper.state_dict(),
            "random": random_states(self.meter.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`; `run` then trains as if uninterrupted, bit for bit on a CPU."""
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                local_shard(self.stepped[name]).copy_(tensor)
        self.ranks.copy_weights(self.model, self.sharded_model)
        self.stepper.load_state_dict(state["steps"], self.ranks)
        log = state["log"] | {"precision": self.log.precision}
        if log["ledger"]:
            log["ledger"] = Ledger(**log["ledger"])
        self.log = TrainingLog(**log)
        self.best = state["best"] or None
        self._random_states = state["random"]
        change = f"resumed at update {self.log.updates} of {self.total}"
        self.log.fallbacks.append(f"{change}; seconds and throughput cover only the rest")

    def updates(self, epoch: int) -> Iterator[Sequence[list[Feature]]]:
        """Yields the epoch's updates, each a list of micro-batches."""
        recipe = self.cell.recipe
        batches = epoch_batches(
            get_lengths(self.features),
            recipe.per_device_train_batch_size,
            self.cell.profile.seed,
            epoch,
        )
        for group in chunks(batches, recipe.gradient_accumulation_steps):
            yield [[self.features[index] for index in batch] for batch in group]

    def update(self, group: Sequence[Sequence[Feature]]) -> Tensor:
        """Performs one optimizer update from micro-batches, halving them each time memory runs out.

        Returns the mean loss over the update's targets.
        """
        while True:
            pieces: list[Sequence[Feature]] = []
            for features in group:
                pieces += chunks(features, self.log.micro_batch)
            self.last_group = pieces
            try:
                return self._step()
            except DoesNotFit as error:
                cause = str(error)
            # Outside `except`, so that the error no longer keeps the failed pass alive.
            self._halve(cause)

    def divisors(self, batches: Sequence[Batch]) -> Sequence[int | float | Tensor]:
        """The divisor of each micro-batch's summed loss: the number of targets on all ranks."""
        count = sum(self.codec.targets(batch) for batch in batches)
        if self.ranks.count == 1:
            return [count] * len(batches)
        total = self.ranks.sum_ranks(torch.full((), count, device=self.meter.device))
        return [total] * len(batches)  # a tensor, so the host does not wait

    def accumulate(
        self,
        group: Sequence[Sequence[Feature]],
        names: Iterable[str],
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss on `group`, as in an update, and the gradients of the parameters in `names`.

        Takes no optimizer step. All ranks must call this.
        """
        self.optimizer.zero_grad()
        micro_batches = self.ranks.share(group, self.log.micro_batch)
        batches = [self.codec.collate(features) for features in micro_batches if features]
        loss = self._backward(batches, len(micro_batches))
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
        gradients = []
        for name in names:
            p = self.stepped[name]
            gradient = torch.zeros_like(p) if p.grad is None else p.grad / scale
            gradients.append(full_tensor(gradient))
        self.optimizer.zero_grad()
        return loss, gradients

    def _halve(self, cause: str) -> None:
        """Halves the micro-batch size; raises InputError if it is 1 or there are several ranks."""
        size = self.log.micro_batch // 2
        update = f"update {self.log.updates + 1} of {self.total}"
        fault = f"{self.cell.id} does not fit: memory runs out at {update}"
        if self.ranks.count > 1:  # ranks may already have summed some gradients
            remedy = "take more ranks"
            if not self.ranks.holds_parts:
                remedy += ", or shard its weights with --ranks N:fsdp"
            rank = f"rank {self.ranks.rank} of {self.ranks.count}"
            raise InputError(f"{fault} on {rank} ({cause}); {remedy}")
        if not size:
            raise InputError(f"{fault} with one row at a time ({cause})")
        self.log.fallbacks.append(
            f"out of memory at {update}: micro-batches of {size} in place of "
            f"{self.log.micro_batch}, accumulated to the same update"
        )
        self.log.micro_batch = size
        self.optimizer.zero_grad()
        free_memory(self.meter.device)

    def _step(self) -> Tensor:
        """Performs an update from `last_group`.

        Raises DoesNotFit if memory runs out in a forward or backward pass, and InputError if it
        runs out in clipping or in the optimizer's step.
        """
        log = self.log
        micro_batches = self.ranks.share(self.last_group, log.micro_batch)
        with self.meter.update(samples=sum(map(len, micro_batches))) as update:
            batches = [self.codec.collate(features) for features in micro_batches if features]
            for batch in batches:
                tokens, padded_tokens = token_counts(batch)
                update.tokens += tokens
                update.padded_tokens += padded_tokens
            # In a sound run all gradients are None here, so the host does not wait.
            if any(p.grad is not None and bool(p.grad.any()) for p in self.trained):
                log.stale.append(log.updates)
            if log.updates in (0, self._end - 1):
                with watch_update(self.sharded_model) as facts:
                    loss = self._backward(batches, len(micro_batches))
                log.watched.append(facts | {"update": log.updates, "micro_batch": log.micro_batch})
            else:
                loss = self._backward(batches, len(micro_batches))
            try:
                with check_memory():
                    self._clip(loss)
                    if not log.updates:
                        log.first_step |= self._first.gradients(self.meter.device)
                    self.adamw.before_step(log.updates, self._end)
                    rates, schedule_rate = self.stepper.step(log.updates)
                    self.adamw.after_step(log.updates)
            except DoesNotFit as error:  # activations are gone by now, so fewer rows would not help
                raise InputError(
                    f"{self.cell.id} does not fit: memory runs out in the optimizer's step of "
                    f"update {log.updates + 1} ({error})"
                ) from None
            log.learning_rates.append(schedule_rate)
            log.group_rates.append(rates)
            # In fp16, the next update settles this step.
            if not self.accelerator.scaler or self.stepper.acts_after_step:
                log.skipped += self.stepper.settle()
            if log.ledger is None:  # gradients and optimizer state exist now
                gradients = tensor_bytes(p.grad for p in self.trained if p.grad is not None)
                log.ledger = ledger(self.sharded_model, self.optimizer, gradients)
            self.optimizer.zero_grad()
        self._on_device["losses"].append(loss)
        log.updates += 1
        log.order = order_after(log.order, self.last_group)
        if log.updates == min(MOVED, self._end):
            log.first_step |= self._first.movement()
        return loss

    def _clip(self, loss: Tensor) -> None:
        """Clips gradients, logs their norms, and counts tensors whose gradient is missing or zero.

        Counting starts once an update has moved weights, since LoRA's A has a zero gradient while B
        is zero. Tensors made here are freed before the optimizer's step, during which footprints
        count bytes.
        """
        log = self.log
        norm = self.stepper.clip()
        squares = self._gradient_squares()
        if norm is not None:
            self._on_device["gradient_norms"].append(norm)
            self._on_device["clipped_norms"].append(squares.sum().sqrt())
        log.skipped += self.stepper.settle()
        last = log.updates - 1
        has_moved = last >= 0 and last not in log.skipped and any(log.group_rates[last])
        if log.moving_updates or has_moved:
            log.moving_updates += 1
            self._idle += (squares == 0) & (loss > LEAST_LOSS)

    def _gradient_squares(self) -> Tensor:
        """Each trained tensor's sum of squared gradients over all shards; 0 without a gradient.

        Uses elementary operations, since the clipping library's norm is checked against the result.
        """
        squares = []
        for parameter in self.trained:
            if parameter.grad is None:
                squares.append(torch.zeros((), device=self.meter.device))
            else:
                values = local_shard(parameter.grad).reshape(-1).float()
                squares.append(torch.dot(values, values))
        total = torch.stack(squares)
        return self.ranks.sum_ranks(total) if self.ranks.holds_parts else total

    def _fetch(self) -> None:
        """Copies to the host the figures that updates left on the device."""
        for name, count in zip(self.trained_names, self._idle.tolist(), strict=True):
            if count:
                self.log.idle[name] = self.log.idle.get(name, 0) + count
        self._idle.zero_()
        self.log.skipped += self.stepper.settle()
        for name, tensors in self._on_device.items():
            getattr(self.log, name).extend(torch.stack(tensors).tolist())
        self._on_device.clear()

    def _backward(self, batches: Sequence[Batch], passes: int) -> Tensor:
        """Accumulates gradients of the update's mean loss over all ranks; returns that loss."""
        total = torch.zeros((), device=self.meter.device)
        divisors = self.divisors(batches)
        idle = max(passes, 1) - len(batches)
        if idle:  # other ranks have rows and wait for this rank's gradients, which are zeros
            batches = [*batches, *[self.codec.collate(self.features[:1])] * idle]
            divisors = [*divisors, *[math.inf] * idle]
        with check_memory():
            if self.ranks.count > 1:  # the last micro-batch's pass sums its gradients too
                self._penalize()
            for number, (batch, count) in enumerate(zip(batches, divisors, strict=True), 1):
                is_last = number == len(batches)
                with nullcontext() if is_last else self.ranks.no_sync(self.ddp_model):
                    with self.accelerator.autocast():
                        loss = self.codec.loss(
                            self.ddp_model,
                            self.codec.to_device(batch, self.meter.device),
                        )
                        loss = loss / count
                    self.accelerator.backward(loss)
                total += loss.detach()
                del loss  # frees the graph, whose memory the next batch may need
            if self.ranks.count == 1:
                self._penalize()
        return self.ranks.sum_ranks(total)

    def _penalize(self) -> None:
        """Adds the gradients of the method's penalty, which counts once across all ranks."""
        penalty = self.cell.method.penalty(self.model)
        if penalty is not None:
            self.accelerator.backward(penalty / self.ranks.count)

    def _keep_better(self, score: float, rows: Sequence[Row]) -> None:
        """Logs the epoch's score, and keeps the weights if no earlier epoch scored as high."""
        is_best = self.best is None or score > max(self.log.epoch_scores)
        self.log.epoch_scores.append(score)
        self.chosen_on = rows
        if not is_best:
            return
        self.log.chosen_epoch = len(self.log.epoch_scores)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        # Kept on the host, because on the device they would raise all later peaks.
        self.best = {name: p.detach().to("cpu", copy=True) for name, p in trained.items()}


def order_after(order: str, group: Sequence[Sequence[Feature]]) -> str:
    """Extends the hash of the row order with the rows of an update."""
    examples = [feature.example for features in group for feature in features]
    return sha256(f"{order}{examples}".encode()).hexdigest()[:16]


class Stepper:
    """Updates weights: clips gradients, steps optimizer and schedule, and adapts the loss scale.

    Only the device knows whether a step was lost to an fp16 overflow, and asking it (`get_scale`)
    would stall the host, then the GPU. The answer is therefore copied asynchronously and read when
    the next step is due; by then the GPU has a whole pass queued.
    """

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        stepped: nn.Module,
        accelerator: Any,
        updates: int,
    ) -> None:
        """Prepares `updates` steps on `stepped`, which is `model` or the copy that FSDP shards."""
        self.cell = cell
        self._model = model  # a method's `after_step` changes it
        self._accelerator = accelerator
        # A method's own optimizer may freeze weights.
        optimizer = cell.method.make_optimizer(stepped, cell)
        self._trained = [p for p in stepped.parameters() if p.requires_grad]
        # `after_step` needs the gradients of its step, so it cannot wait for the next step.
        self.acts_after_step = type(cell.method).after_step is not Method.after_step
        # The schedule wraps the optimizer's step, so it must be made before accelerate wraps it.
        self.schedule = make_schedule(optimizer, cell, updates)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self._unsettled: list[int] = []  # the update that fp16 may have lost
        self._lost: Tensor | None = None
        self._arrived: Any = None

    def clip(self) -> Tensor | None:
        """Clips gradients; returns their norm before clipping, or None if the recipe does not clip.

        The norm stays on the device. In both cases, gradients no longer have fp16's loss scale.
        """
        bound = self.cell.recipe.max_grad_norm
        if bound is None:
            if self._accelerator.scaler:
                self._accelerator.scaler.unscale_(self.optimizer.optimizer)
            return None
        return full_tensor(self._accelerator.clip_grad_norm_(self._trained, bound))

    def step(self, update: int) -> tuple[list[float], float]:
        """Steps the optimizer in update number `update`, counting from 0.

        Returns the learning rate of each parameter group, and the schedule's learning rate.
        """
        scaler = self._accelerator.scaler
        if scaler:
            scale = scaler._get_scale_async().clone()  # `get_scale` without waiting
            self.optimizer.step()
            is_lost = scaler._get_scale_async() < scale
            self._lost = is_lost.to("cpu", non_blocking=True)  # a GPU copies into pinned memory
            self._arrived = None
            if is_lost.is_cuda:
                self._arrived = torch.cuda.current_stream().record_event()
        else:
            # Bypasses accelerate's step, which looks for another package on disk each time.
            self.optimizer.optimizer.step()
        self._unsettled = [update]
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return rates, self.schedule.get_last_lr()[0]

    def settle(self) -> list[int]:
        """Runs the method's `after_step` and advances the schedule, unless fp16 lost the update.

        With a loss scale, waits for the device. Returns the lost update, if any, in a list.
        """
        updates = self._unsettled
        self._unsettled = []
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._lost is not None and self._lost:
            return updates
        for update in updates:
            self.cell.method.after_step(self._model, update)
            self.schedule.step()
        return []

    def state_dict(self) -> dict[str, Any]:
        """The state, other than weights, on which the next step depends."""
        scaler = self._accelerator.scaler
        groups = [dict(group) for group in self.optimizer.param_groups]
        for group in groups:
            del group["params"]
        schedule = self.schedule.state_dict()
        schedule.pop("lr_lambdas", None)  # functions, which no file can hold
        return {
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "groups": groups,
            "schedule": schedule,
            "scaler": scaler.state_dict() if scaler else {},
            "method": self.cell.method.state_dict(self._model),
        }

    def load_state_dict(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Restores this rank's `state_dict`."""
        optimizer = self.optimizer.optimizer
        groups = optimizer.state_dict()["param_groups"]
        for group, fields in zip(groups, state["groups"], strict=True):
            group.update(fields)
        parameters: list[Tensor] = []
        for group in optimizer.param_groups:
            parameters += group["params"]
        moments = {}
        for key, entry in state["optimizer"].items():
            index = int(key)  # the parameter's index, which a file stores as text
            moments[index] = ranks.moments(entry, parameters[index])
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        if self._accelerator.scaler and state["scaler"]:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.cell.method.load_state_dict(self._model, state["method"])


def make_schedule(optimizer: Any, cell: Cell, updates: int) -> Any:
    """The recipe's learning-rate schedule, counted in updates."""
    recipe = cell.recipe
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * updates)
    return hf.get_scheduler(
        recipe.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=updates,
    )
