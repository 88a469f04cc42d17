"""The training loop: trains a model on a codec's features by a recipe, and keeps a log of it.

One loop for every cell. Its unit is the update: one or more micro-batches, one optimizer step, one
schedule step. The loss of an update is the mean over all its targets, however they are cut into
micro-batches.
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

CHECK_EVERY = 10  # updates between looks at the loss: every look makes a GPU wait
# Nats. A model so sure has no gradient, or one of which fp32 rounds off a percent.
LEAST_LOSS = 1e-5
# Returns a score of the model, higher is better, and the scored rows.
Validate = Callable[[], tuple[float, Sequence[Row]]]


@dataclass(kw_only=True)
class TrainingLog:
    """The log of one training so far, saved in checkpoints; lists have an entry per update."""

    precision: Precision  # resolved for the device
    micro_batch: int  # rows of a forward pass now; smaller than the recipe's if memory ran out
    fallbacks: list[str]  # a sentence for every deviation from the recipe
    updates: int = 0
    # Mean of an update, nats per target; those still on the device are missing.
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)  # the first parameter group's
    group_rates: list[list[float]] = field(default_factory=list)  # of every parameter group
    # Total norm before clipping; empty if the recipe does not clip.
    gradient_norms: list[float] = field(default_factory=list)
    clipped_norms: list[float] = field(default_factory=list)  # the same after clipping
    # Updates that fp16 lost to an overflow: the schedule does not advance.
    skipped: list[int] = field(default_factory=list)
    order: str = ""  # a hash of the rows of each update, in order
    # How the first and the last update ran, see `watch_update`.
    watched: list[dict[str, Any]] = field(default_factory=list)
    moving_updates: int = 0  # those after the first one that moved weights
    # Updates that began with gradients of the one before.
    stale: list[int] = field(default_factory=list)
    # By parameter, the moving updates in which it had no gradient; 0 is left out.
    idle: dict[str, int] = field(default_factory=dict)
    # Bytes of weights, gradients and optimizer state; None before the first update.
    ledger: Ledger | None = None
    # Fields of `FirstStep`: before the first update, and of it.
    first_step: dict[str, Any] = field(default_factory=dict)
    # Validation score after each epoch, if the recipe has several.
    epoch_scores: list[float] = field(default_factory=list)
    chosen_epoch: int | None = None  # the epoch of the kept weights; None without a choice
    stopped: str | None = None  # why training ended early


class Trainer:
    """One cell's training: made before it runs; audits look at it afterwards.

    Attributes:
        parameters: the model's, by name; `before` holds their checksums before training.
        stepped: the optimizer's tensors, by name: these parameters, or this rank's shards of them.
        trained: those of `stepped` that the optimizer changes.
        adamw: AdamW beside the optimizer's first steps.
        log: the log so far; `run` does not repeat its updates. `total` is the updates in all.
        sharded_model: the model, or its copy that FSDP shards over the ranks.
        ddp_model: the module that training calls.
        last_group: the micro-batches of the last update, of all ranks.
        paused: training stopped after its first updates.
        best: weights of the best epoch so far, on the host; None if no epoch was scored yet.
        chosen_on: the rows whose score chose it.
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
        # A session trains many cells.
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
        # Read after `Stepper`, since a method's optimizer may freeze some.
        self.trained = [self.stepped[name] for name in self.trained_names]
        # If not, a loss scale or the method moves weights, too.
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
        # Values of the log's lists, and counts of its `idle`, that were not fetched yet.
        self._on_device = defaultdict[str, list[Tensor]](list)
        self._idle = torch.zeros(len(self.trained), dtype=torch.int64, device=meter.device)

    def start_from(self, figures: Mapping[str, Any]) -> None:
        """Takes over figures of the model before its first update."""
        self.log.first_step |= figures

    def run(
        self,
        progress: Progress,
        validate: Validate | None = None,
        *,
        first_updates: int | None = None,
    ) -> TrainingRecord:
        """Trains to the end, or to the first loss that is not a number; keeps the best epoch."""
        log = self.log
        self._end = min(first_updates or self.total, self.total)
        # Dropout is the same whatever happened while the model was built; each rank has its own.
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
                self.paused = True  # the record's order is that of the whole training
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
        """Fetches losses and shows the last one; stops training if one is not a finite number."""
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
        """The record's part of the training so far, with all ranks' tokens: all must ask."""
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
        """The log and all that the next update depends on: nested tensors and plain values."""
        self._fetch()
        return {
            "weights": {name: p.detach() for name, p in self.stepped.items() if p.requires_grad},
            "best": self.best or {},
            "log": asdict(self.log),
            "steps": self.stepper.state_dict(),
            "random": random_states(self.meter.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a `state_dict`; `run` then gives the same weights, bit for bit on a CPU."""
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
        """The epoch's updates, each a list of micro-batches."""
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
        """Makes one optimizer update on micro-batches, which are halved each time memory runs out.

        Returns the mean loss of its targets.
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
            self._halve(cause)  # out here, where the error no longer keeps the failed pass alive

    def divisors(self, batches: Sequence[Batch]) -> Sequence[int | float | Tensor]:
        """The divisor of each micro-batch's summed loss: the update's targets, over all ranks."""
        count = sum(self.codec.targets(batch) for batch in batches)
        if self.ranks.count == 1:
            return [count] * len(batches)
        total = self.ranks.sum_ranks(torch.full((), count, device=self.meter.device))
        return [total] * len(batches)  # a tensor: the host does not wait

    def accumulate(
        self,
        group: Sequence[Sequence[Feature]],
        names: Iterable[str],
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss of an update on micro-batches and some of its gradients; all ranks must ask."""
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
        """Halves micro-batches. Raises InputError if they have one row, or if ranks share them."""
        size = self.log.micro_batch // 2
        update = f"update {self.log.updates + 1} of {self.total}"
        fault = f"{self.cell.id} does not fit: memory runs out at {update}"
        if self.ranks.count > 1:  # which may have summed some of their gradients already
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
        """Updates on `last_group`. Raises DoesNotFit if memory runs out before the step."""
        log = self.log
        micro_batches = self.ranks.share(self.last_group, log.micro_batch)
        with self.meter.update(samples=sum(map(len, micro_batches))) as update:
            batches = [self.codec.collate(features) for features in micro_batches if features]
            for batch in batches:
                tokens, padded_tokens = token_counts(batch)
                update.tokens += tokens
                update.padded_tokens += padded_tokens
            # In a sound run all are None, and the host does not wait.
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
            except DoesNotFit as error:  # activations are gone by now: fewer rows would not help
                raise InputError(
                    f"{self.cell.id} does not fit: memory runs out in the optimizer's step of "
                    f"update {log.updates + 1} ({error})"
                ) from None
            log.learning_rates.append(schedule_rate)
            log.group_rates.append(rates)
            # In fp16 the next update settles this one.
            if not self.accelerator.scaler or self.stepper.acts_after_step:
                log.skipped += self.stepper.settle()
            if log.ledger is None:  # gradients and optimizer state are in place
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
        """Clips the update's gradients, notes their norms, and counts the tensors without one.

        They count once an update has moved weights: LoRA's A has no gradient while B is zero.
        Tensors made here are freed before the optimizer's step, in which footprints count bytes.
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
        """The sum of squares of each trained tensor's gradient, over all shards; 0 if it has none.

        In elementary operations, since the norm of the library that clips is compared with it.
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
        """Brings figures that updates left on the device to the host."""
        for name, count in zip(self.trained_names, self._idle.tolist(), strict=True):
            if count:
                self.log.idle[name] = self.log.idle.get(name, 0) + count
        self._idle.zero_()
        self.log.skipped += self.stepper.settle()
        for name, tensors in self._on_device.items():
            getattr(self.log, name).extend(torch.stack(tensors).tolist())
        self._on_device.clear()

    def _backward(self, batches: Sequence[Batch], passes: int) -> Tensor:
        """Adds gradients of the update's mean loss, over all ranks; returns that loss."""
        total = torch.zeros((), device=self.meter.device)
        divisors = self.divisors(batches)
        idle = max(passes, 1) - len(batches)
        if idle:  # other ranks have rows, and wait for this one's gradients: zeros
            batches = [*batches, *[self.codec.collate(self.features[:1])] * idle]
            divisors = [*divisors, *[math.inf] * idle]
        with check_memory():
            if self.ranks.count > 1:  # summed over the ranks with the last micro-batch
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
                del loss  # and its graph, whose room the next batch may need
            if self.ranks.count == 1:
                self._penalize()
        return self.ranks.sum_ranks(total)

    def _penalize(self) -> None:
        """Adds the gradients of the method's penalty, once over all ranks."""
        penalty = self.cell.method.penalty(self.model)
        if penalty is not None:
            self.accelerator.backward(penalty / self.ranks.count)

    def _keep_better(self, score: float, rows: Sequence[Row]) -> None:
        """Keeps the epoch's weights if they score higher than those of every epoch before."""
        is_best = self.best is None or score > max(self.log.epoch_scores)
        self.log.epoch_scores.append(score)
        self.chosen_on = rows
        if not is_best:
            return
        self.log.chosen_epoch = len(self.log.epoch_scores)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        # On the host: on the device it would count in all later peaks.
        self.best = {name: p.detach().to("cpu", copy=True) for name, p in trained.items()}


def order_after(order: str, group: Sequence[Sequence[Feature]]) -> str:
    """The hash of an order of rows to which an update on these micro-batches is added."""
    examples = [feature.example for features in group for feature in features]
    return sha256(f"{order}{examples}".encode()).hexdigest()[:16]


class Stepper:
    """Moves weights by gradients: clipping, the optimizer, fp16's loss scale, the schedule.

    Only the device knows whether fp16 lost a step; asking (`get_scale`) would stall the host, then
    the GPU. So the answer is copied asynchronously and read when the next step is due: by then the
    GPU has a whole pass queued behind it.
    """

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        stepped: nn.Module,
        accelerator: Any,
        updates: int,
    ) -> None:
        """Plans `updates` steps of `stepped`: a cell's model, or the copy that FSDP shards."""
        self.cell = cell
        self._model = model  # a method's `after_step` changes it
        self._accelerator = accelerator
        optimizer = cell.method.make_optimizer(stepped, cell)  # a method's own may freeze weights
        self._trained = [p for p in stepped.parameters() if p.requires_grad]
        # A method's `after_step` needs the gradients of that step, so it cannot wait.
        self.acts_after_step = type(cell.method).after_step is not Method.after_step
        # Made before accelerate wraps the optimizer's step, to be wrapped with it.
        self.schedule = make_schedule(optimizer, cell, updates)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self._unsettled: list[int] = []  # the update that fp16 may have lost
        self._lost: Tensor | None = None
        self._arrived: Any = None

    def clip(self) -> Tensor | None:
        """Clips the gradients; returns their norm before, on the device. None if nothing clips."""
        bound = self.cell.recipe.max_grad_norm
        if bound is None:
            return None
        return full_tensor(self._accelerator.clip_grad_norm_(self._trained, bound))

    def step(self, update: int) -> tuple[list[float], float]:
        """Steps the optimizer in update 0, 1, ...; returns each group's and the schedule's rate."""
        scaler = self._accelerator.scaler
        if scaler:
            scale = scaler._get_scale_async().clone()  # `get_scale` without waiting
            self.optimizer.step()
            is_lost = scaler._get_scale_async() < scale
            self._lost = is_lost.to("cpu", non_blocking=True)  # from a GPU into pinned memory
            self._arrived = None
            if is_lost.is_cuda:
                self._arrived = torch.cuda.current_stream().record_event()
        else:
            # Not accelerate's, which looks for another package on the disk each time.
            self.optimizer.optimizer.step()
        self._unsettled = [update]
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return rates, self.schedule.get_last_lr()[0]

    def settle(self) -> list[int]:
        """Advances the schedule, or returns the update if fp16 lost it; waits for the device."""
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
        """State that the next step depends on, beside weights."""
        scaler = self._accelerator.scaler
        groups = [dict(group) for group in self.optimizer.param_groups]
        for group in groups:
            del group["params"]
        schedule = self.schedule.state_dict()
        schedule.pop("lr_lambdas", None)  # functions
        return {
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "groups": groups,
            "schedule": schedule,
            "scaler": scaler.state_dict() if scaler else {},
            "method": self.cell.method.state_dict(self._model),
        }

    def load_state_dict(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Takes over a `state_dict`, of this rank."""
        optimizer = self.optimizer.optimizer
        groups = optimizer.state_dict()["param_groups"]
        for group, fields in zip(groups, state["groups"], strict=True):
            group.update(fields)
        parameters: list[Tensor] = []
        for group in optimizer.param_groups:
            parameters += group["params"]
        moments = {}
        for key, entry in state["optimizer"].items():
            index = int(key)  # of the parameter; a file has it as text
            moments[index] = ranks.moments(entry, parameters[index])
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        if self._accelerator.scaler and state["scaler"]:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.cell.method.load_state_dict(self._model, state["method"])


def make_schedule(optimizer: Any, cell: Cell, updates: int) -> Any:
    """The recipe's schedule, counted in updates."""
    recipe = cell.recipe
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * updates)
    return hf.get_scheduler(
        recipe.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=updates,
    )
