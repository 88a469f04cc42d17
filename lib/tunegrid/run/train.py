"""The training loop: trains a model on a codec's features by a recipe, and keeps a log of it.

One loop for every cell. Its unit is the update: one or more micro-batches, one optimizer step, one schedule step. The loss
of an update is the mean over all its targets, however they are cut into micro-batches.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
LEAST_LOSS = 1e-5  # nats; a model so sure leaves no gradient, or one of which fp32 rounds off a percent
Validate = Callable[[], tuple[float, Sequence[Row]]]  # a score of the model, higher is better, and the rows it was taken on


@dataclass(kw_only=True)
class TrainingLog:
    """What happened in one training so far, all of which a checkpoint keeps; lists have an entry for each update."""

    precision: Precision  # what the device could do
    micro_batch: int  # rows of a forward pass now; smaller than the recipe's if memory ran out
    fallbacks: list[str]  # a sentence for every deviation from the recipe
    updates: int = 0
    losses: list[float] = field(default_factory=list)  # mean of an update, nats per target; those on the device are missing
    learning_rates: list[float] = field(default_factory=list)  # the first parameter group's
    group_rates: list[list[float]] = field(default_factory=list)  # of every parameter group
    gradient_norms: list[float] = field(default_factory=list)  # total norm before clipping; empty if the recipe does not clip
    clipped_norms: list[float] = field(default_factory=list)  # the same after clipping
    skipped: list[int] = field(default_factory=list)  # updates that fp16 lost to an overflow: the schedule does not advance
    order: str = ""  # a hash of the rows of each update, in order; equal orders have equal hashes
    watched: list[dict[str, Any]] = field(default_factory=list)  # how the first and the last update ran, see `watch_update`
    moving_updates: int = 0  # those after the first one that moved weights
    stale: list[int] = field(default_factory=list)  # updates that began with gradients of the one before
    idle: dict[str, int] = field(default_factory=dict)  # in how many of these a parameter had no gradient; 0 is left out
    ledger: Ledger | None = None  # bytes of weights, gradients and optimizer state; None before the first update
    first_step: dict[str, Any] = field(default_factory=dict)  # fields of `FirstStep`: before the first update, and of it
    epoch_scores: list[float] = field(default_factory=list)  # validation score after each epoch, if the recipe has several
    chosen_epoch: int | None = None  # whose weights were kept; None if there was nothing to choose
    stopped: str | None = None  # why training ended early


class Trainer:
    """One cell's training: made before it runs; audits look at it afterwards.

    Attributes:
        parameters: the model's, by name; `before` holds their checksums before training.
        stepped: what the optimizer steps, by name: these parameters, or this rank's parts of them; `trained`: those it changes.
        adamw: AdamW beside the optimizer's first steps.
        log: what happened so far; `run` does not repeat updates that were made before it. `total` is the updates in all.
        sharded_model: the model, or its copy that ranks share out; `ddp_model` is what forward passes of training go through.
        last_group: the micro-batches of the last update, of all ranks; `paused`: whether it stopped after its first updates.
        best: weights of the best epoch so far, in the host's memory; None if no epoch was scored yet.
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
        """Training of `model` on `features`; `after_update` is called after each update. Raises InputError without features."""
        if not features:
            raise InputError(f"no training row fits {cell.id}: max_length {cell.recipe.max_length} cuts every answer off")
        self.cell, self.model, self.codec, self.features, self.meter, self.ranks = cell, model, codec, features, meter, ranks
        self.total = cell.recipe.planned_updates(len(features))
        cell.method.plan(model, self.total)
        precision, change = resolve_precision(cell, meter.device)
        changes = (change, resolve_quantization(cell, meter.device)[1], cell.new_parts)
        fallbacks = [sentence for sentence in changes if sentence]
        micro_batch = cell.recipe.per_device_train_batch_size
        self.log = TrainingLog(precision=precision, micro_batch=micro_batch, fallbacks=fallbacks)
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a session trains many cells
        mixed_precision = "no" if precision == "fp32" else precision
        self.accelerator = accelerate.Accelerator(mixed_precision=mixed_precision, cpu=meter.device.type == "cpu")
        self.parameters, self.before = dict(model.named_parameters()), checksums(model.named_parameters())
        self.sharded_model = ranks.sharded_model(model, cell, precision) if ranks.holds_parts else model
        self.stepped = dict(self.sharded_model.named_parameters())
        self.stepper = Stepper(cell, model, self.sharded_model, self.accelerator, self.total)
        self.optimizer = self.stepper.optimizer
        self.trained_names = [name for name, p in self.stepped.items() if p.requires_grad]
        self.trained = [self.stepped[name] for name in self.trained_names]  # a method's optimizer may freeze some
        is_alone = not self.accelerator.scaler and not self.stepper.acts_after_step  # else other things move weights, too
        self.adamw = AdamW(self.optimizer.optimizer, self.stepped if is_alone else {})
        needs_no_ddp = ranks.count == 1 or ranks.holds_parts  # a sharded model sums gradients by itself
        self.ddp_model = self.sharded_model if needs_no_ddp else ranks.ddp_model(self.sharded_model)
        self.last_group: Sequence[Sequence[Feature]] = ()
        self.paused, self._end = False, self.total
        self.best: dict[str, Tensor] | None = None
        self.chosen_on: Sequence[Row] = ()
        self._after_update = after_update
        self._first = FirstUpdates(cell, model, self.stepped)
        self._random_states: dict[str, Tensor] | None = None
        self._on_device = defaultdict[str, list[Tensor]](list)  # values of the log's lists that were not fetched yet
        self._idle = torch.zeros(len(self.trained), dtype=torch.int64, device=meter.device)  # of each, not fetched yet

    def start_from(self, figures: Mapping[str, Any]) -> None:
        """Take over what was measured of the model before its first update."""
        self.log.first_step |= figures

    def run(self, progress: Progress, validate: Validate | None = None, *, first_updates: int | None = None) -> TrainingRecord:
        """Train to the end, or to the first loss that is not a number. Of several epochs, keep the best one's weights."""
        log = self.log
        self._end = min(first_updates or self.total, self.total)
        # Dropout: the same whatever happened while the model was built; each rank drops others.
        hf.set_seed((self.cell.profile.seed + self.ranks.rank * SEED_STEP) % SEEDS)
        if self._random_states:
            set_random_states(self.meter.device, self._random_states)
        epoch_updates = self.cell.recipe.updates_per_epoch(len(self.features))
        epochs = range(math.ceil(self.total / epoch_updates))
        for epoch in epochs[max(0, log.updates - 1) // epoch_updates :]:
            start = epoch * epoch_updates
            with self.ranks.train_parts(self.model, self.sharded_model) if self.ranks.holds_parts else nullcontext():
                self.ddp_model.train()
                for group in islice(self.updates(epoch), log.updates - start, self._end - start):
                    self.update(group)
                    if log.updates % CHECK_EVERY == 0 or log.updates == self._end:
                        self._fetch()
                        self.meter.note_tensors((self.best or {}).values(), is_last=log.updates == self._end)
                        bad_index = next((i for i, loss in enumerate(log.losses) if not math.isfinite(loss)), None)
                        if bad_index is not None:
                            log.stopped = f"loss is {log.losses[bad_index]} at update {bad_index + 1} of {self.total}"
                        recent_updates = self.meter.updates[-CHECK_EVERY:]
                        samples = self.ranks.count * sum(update.samples for update in recent_updates)
                        rate = samples / (sum(self.meter.durations(recent_updates)) or math.inf)
                        progress("train", log.updates, self.total, f"loss {log.losses[-1]:.3f}  {rate:.0f} samples/s")
                    if log.stopped:
                        break
                    self._after_update(self)
            if log.stopped:
                return self.part()
            if first_updates and log.updates == self._end:
                self.paused = True  # just so many of the same course, and the order of the rows of all of it
                rest = islice(chain.from_iterable(map(self.updates, epochs)), log.updates, self.total)
                return replace(self.part(), order=reduce(order_after, rest, log.order))
            if validate and self.cell.recipe.num_train_epochs > 1 and len(log.epoch_scores) == epoch:
                with self.meter.phase("validate"):
                    score, rows = validate()
                with self.meter.phase("keep_best"):
                    self._keep_better(score, rows)
        if self.best is not None:
            with self.meter.phase("keep_best"):
                self.model.load_state_dict(self.best, strict=False)
                self.ranks.copy_weights(self.model, self.sharded_model, back=True)
        return self.part()

    def part(self) -> TrainingRecord:
        """The record's part of what was trained so far; tokens are those of all ranks, which must ask together."""
        self._fetch()
        log = self.log
        return TrainingRecord(
            seconds=sum(self.meter.durations(self.meter.updates)),
            tokens=sum(self.ranks.gather(sum(update.tokens for update in self.meter.updates))),
            updates=log.updates,
            precision=log.precision,
            micro_batch=log.micro_batch,
            fallbacks=[*log.fallbacks],
            order=log.order,
            losses=[*log.losses],
            final_learning_rate=log.learning_rates[-1] if log.learning_rates else None,
            gradient_norm=jsonable(log.gradient_norms[0]) if log.gradient_norms else None,
            clipped_norm=jsonable(log.clipped_norms[0]) if log.clipped_norms else None,
            first_step=FirstStep(**log.first_step) if set(log.first_step) == set(FirstStep.__annotations__) else None,
            epoch_scores=[*log.epoch_scores],
            chosen_epoch=log.chosen_epoch,
            stopped=log.stopped,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, and the log so far, as nested mappings of tensors and plain values."""
        self._fetch()
        return {
            "weights": {name: p.detach() for name, p in self.stepped.items() if p.requires_grad},
            "best": self.best or {},
            "log": asdict(self.log),
            "steps": self.stepper.state_dict(),
            "random": random_states(self.meter.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict`; `run` goes on from there, to the same weights, bit for bit on a CPU."""
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                local_shard(self.stepped[name]).copy_(tensor)
        self.ranks.copy_weights(self.model, self.sharded_model)
        self.stepper.load_state_dict(state["steps"], self.ranks)
        log = state["log"]
        fields = {"precision": self.log.precision, "ledger": Ledger(**log["ledger"]) if log["ledger"] else None}
        self.log = TrainingLog(**log | fields)
        self.best = state["best"] or None
        self._random_states = state["random"]
        sentence = f"resumed at update {self.log.updates} of {self.total}; seconds and throughput cover only the rest"
        self.log.fallbacks.append(sentence)

    def updates(self, epoch: int) -> Iterator[Sequence[list[Feature]]]:
        """The epoch's updates, each a list of micro-batches."""
        recipe = self.cell.recipe
        batches = epoch_batches(get_lengths(self.features), recipe.per_device_train_batch_size, self.cell.profile.seed, epoch)
        for group in chunks(batches, recipe.gradient_accumulation_steps):
            yield [[self.features[index] for index in batch] for batch in group]

    def update(self, group: Sequence[Sequence[Feature]]) -> Tensor:
        """One optimizer update on several micro-batches, cut in half as often as memory runs out; the mean loss of targets."""
        while True:
            self.last_group = [piece for features in group for piece in chunks(features, self.log.micro_batch)]
            try:
                return self._step()
            except DoesNotFit as error:
                cause = str(error)
            self._halve(cause)  # out here, where the error no longer keeps the failed pass alive

    def divisors(self, batches: Sequence[Batch]) -> Sequence[int | float | Tensor]:
        """The divisor of each micro-batch's summed loss: the targets of the whole update, over all ranks."""
        count = sum(self.codec.targets(batch) for batch in batches)
        if self.ranks.count == 1:
            return [count] * len(batches)
        return [self.ranks.sum_ranks(torch.full((), count, device=self.meter.device))] * len(batches)  # the host does not wait

    def accumulate(self, group: Sequence[Sequence[Feature]], names: Iterable[str]) -> tuple[Tensor, list[Tensor]]:
        """The loss that an update on these micro-batches would have, and some parameters' gradients; all ranks must ask."""
        self.optimizer.zero_grad()
        micro_batches = self.ranks.share(group, self.log.micro_batch)
        loss = self._backward([self.codec.collate(features) for features in micro_batches if features], len(micro_batches))
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
        parameters = [self.stepped[name] for name in names]
        gradients = [full_tensor(torch.zeros_like(p) if p.grad is None else p.grad / scale) for p in parameters]
        self.optimizer.zero_grad()
        return loss, gradients

    def _halve(self, cause: str) -> None:
        """Make micro-batches half as large. Raises InputError if they have one row, or if ranks share them."""
        size, place = self.log.micro_batch // 2, f"update {self.log.updates + 1} of {self.total}"
        if self.ranks.count > 1:  # which may have summed some of their gradients already
            rank = f"rank {self.ranks.rank} of {self.ranks.count}"
            remedy = "take more ranks" + ("" if self.ranks.holds_parts else ", or shard its weights with --ranks N:fsdp")
            raise InputError(f"{self.cell.id} does not fit: memory runs out at {place} on {rank} ({cause}); {remedy}")
        if not size:
            raise InputError(f"{self.cell.id} does not fit: memory runs out at {place} with one row at a time ({cause})")
        change = f"micro-batches of {size} in place of {self.log.micro_batch}, accumulated to the same update"
        self.log.fallbacks.append(f"out of memory at {place}: {change}")
        self.log.micro_batch = size
        self.optimizer.zero_grad()
        free_memory(self.meter.device)

    def _step(self) -> Tensor:
        """The update on `last_group`. Raises DoesNotFit if memory runs out before the optimizer's step."""
        log, micro_batches = self.log, self.ranks.share(self.last_group, self.log.micro_batch)
        with self.meter.update(samples=sum(map(len, micro_batches))) as update:
            batches = [self.codec.collate(features) for features in micro_batches if features]
            counts = list(map(token_counts, batches))
            update.tokens, update.padded_tokens = sum(real for real, _ in counts), sum(size for _, size in counts)
            if any(p.grad is not None and bool(p.grad.any()) for p in self.trained):  # all are None, so no one waits
                log.stale.append(log.updates)
            is_watched = log.updates in (0, self._end - 1)
            watch: AbstractContextManager[dict[str, Any]] = watch_update(self.sharded_model) if is_watched else nullcontext({})
            with watch as facts:
                loss = self._backward(batches, len(micro_batches))
            if is_watched:
                log.watched.append(facts | {"update": log.updates, "micro_batch": log.micro_batch})
            try:
                with check_memory():
                    self._clip(loss)
                    if not log.updates:
                        log.first_step |= self._first.gradients(self.meter.device)
                    self.adamw.before_step(log.updates, self._end)
                    rates, schedule_rate = self.stepper.step(log.updates)
                    self.adamw.after_step(log.updates)
            except DoesNotFit as error:  # activations are gone by now: fewer rows at once would not help
                cause = f"in the optimizer's step of update {log.updates + 1} ({error})"
                raise InputError(f"{self.cell.id} does not fit: memory runs out {cause}") from None
            log.learning_rates.append(schedule_rate)
            log.group_rates.append(rates)
            if not self.accelerator.scaler or self.stepper.acts_after_step:  # in fp16 the next update settles this one
                log.skipped += self.stepper.settle()
            if log.ledger is None:  # while gradients and optimizer state are in place; each update has the same bytes
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
        """Clip the update's gradients, note their norms, and count the tensors without one.

        They count once an update has moved weights: LoRA's A has no gradient while B is zero. What is computed here is gone
        before the optimizer's step, in which footprints look at what is held.
        """
        log = self.log
        norm = self.stepper.clip()
        squares = self._gradient_squares()
        if norm is not None:
            self._on_device["gradient_norms"].append(norm)
            self._on_device["clipped_norms"].append(squares.sum().sqrt())
        log.skipped += self.stepper.settle()
        last = log.updates - 1
        if log.moving_updates or (last >= 0 and last not in log.skipped and any(log.group_rates[last])):
            log.moving_updates += 1
            self._idle += (squares == 0) & (loss > LEAST_LOSS)

    def _gradient_squares(self) -> Tensor:
        """The sum of squares of each trained tensor's gradient, over all shards; 0 if it has none.

        In elementary operations: the library that clips has a norm of its own, which this one is compared with.
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
        """Bring what updates left on the device to the host."""
        for name, count in zip(self.trained_names, self._idle.tolist(), strict=True):
            if count:
                self.log.idle[name] = self.log.idle.get(name, 0) + count
        self._idle.zero_()
        self.log.skipped += self.stepper.settle()
        for name, tensors in self._on_device.items():
            getattr(self.log, name).extend(torch.stack(tensors).tolist())
        self._on_device.clear()

    def _backward(self, batches: Sequence[Batch], passes: int) -> Tensor:
        """Add the gradients of the update's mean loss, of all ranks' batches; return that loss."""
        total = torch.zeros((), device=self.meter.device)
        divisors = self.divisors(batches)
        if idle := max(passes, 1) - len(batches):  # others have rows, and wait for this rank's gradients: zeros
            batches = [*batches, *[self.codec.collate(self.features[:1])] * idle]
            divisors = [*divisors, *[math.inf] * idle]
        with check_memory():
            if self.ranks.count > 1:  # summed over the ranks with the last micro-batch
                self._penalize()
            for number, (batch, count) in enumerate(zip(batches, divisors, strict=True), 1):
                with self.ranks.no_sync(self.ddp_model) if number < len(batches) else nullcontext():
                    with self.accelerator.autocast():
                        loss = self.codec.loss(self.ddp_model, self.codec.to_device(batch, self.meter.device)) / count
                    self.accelerator.backward(loss)
                total += loss.detach()
                del loss  # and its graph, whose room the next batch may need
            if self.ranks.count == 1:
                self._penalize()
        return self.ranks.sum_ranks(total)

    def _penalize(self) -> None:
        """Add the gradients of the method's penalty, once over all ranks."""
        penalty = self.cell.method.penalty(self.model)
        if penalty is not None:
            self.accelerator.backward(penalty / self.ranks.count)

    def _keep_better(self, score: float, rows: Sequence[Row]) -> None:
        """Keep the epoch's weights if they score higher than those of every epoch before."""
        best = self.best is None or score > max(self.log.epoch_scores)
        self.log.epoch_scores.append(score)
        self.chosen_on = rows
        if best:
            self.log.chosen_epoch = len(self.log.epoch_scores)
            # On the host: on the device it would stand in the peaks of all that follows.
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in self.model.named_parameters() if p.requires_grad}


def order_after(order: str, group: Sequence[Sequence[Feature]]) -> str:
    """The hash of an order of rows to which an update on these micro-batches is added."""
    examples = [feature.example for features in group for feature in features]
    return sha256(f"{order}{examples}".encode()).hexdigest()[:16]


class Stepper:
    """Moves weights by gradients: clipping, the optimizer, fp16's loss scale, the schedule.

    Whether fp16 lost a step only the device knows, and the host, then the GPU, would wait if it was asked (`get_scale`). So the
    answer travels by itself, and is read when the next step is due: the GPU has a whole pass queued behind it by then.
    """

    def __init__(self, cell: Cell, model: nn.Module, stepped: nn.Module, accelerator: Any, updates: int) -> None:
        """Steps of `stepped`, which is a cell's model, or the copy of it that ranks share out; so many updates are planned."""
        self.cell, self._model, self._accelerator = cell, model, accelerator  # its method acts after a step
        optimizer = cell.method.make_optimizer(stepped, cell)  # a method's own may freeze weights
        self._trained = [p for p in stepped.parameters() if p.requires_grad]
        # What the method does after a step needs the gradients of that step, so it cannot wait.
        self.acts_after_step = type(cell.method).after_step is not Method.after_step
        self.schedule = make_schedule(optimizer, cell, updates)  # before accelerate wraps its step, to be wrapped with it
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self._unsettled: list[int] = []  # the update of which is not known yet whether fp16 lost it
        self._lost: Tensor | None = None
        self._arrived: Any = None

    def clip(self) -> Tensor | None:
        """Clip the gradients; return their norm before, which stays on the device. None if the recipe does not clip."""
        bound = self.cell.recipe.max_grad_norm
        return None if bound is None else full_tensor(self._accelerator.clip_grad_norm_(self._trained, bound))

    def step(self, update: int) -> tuple[list[float], float]:
        """Step the optimizer in an update, counted from 0; return each group's rate in it, and the schedule's."""
        if scaler := self._accelerator.scaler:
            scale = scaler._get_scale_async().clone()  # `get_scale` without waiting
            self.optimizer.step()
            is_lost = scaler._get_scale_async() < scale
            self._lost = is_lost.to("cpu", non_blocking=True)  # from a GPU into pinned memory
            self._arrived = torch.cuda.current_stream().record_event() if is_lost.is_cuda else None
        else:
            self.optimizer.optimizer.step()  # accelerate's looks for another package on the disk each time
        self._unsettled = [update]
        return [float(group["lr"]) for group in self.optimizer.param_groups], self.schedule.get_last_lr()[0]

    def settle(self) -> list[int]:
        """Advance the schedule past the last update; if fp16 lost that, return it instead. Waits until the device knows."""
        updates, self._unsettled = self._unsettled, []
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._lost is not None and self._lost:
            return updates
        for update in updates:
            self.cell.method.after_step(self._model, update)
            self.schedule.step()
        return []

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, beside weights."""
        scaler, groups = self._accelerator.scaler, self.optimizer.param_groups
        return {
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in groups],
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},  # functions
            "scaler": scaler.state_dict() if scaler else {},
            "method": self.cell.method.state_dict(self._model),
        }

    def load_state_dict(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Take over a `state_dict`, of this rank."""
        optimizer = self.optimizer.optimizer
        groups = [group | fields for group, fields in zip(optimizer.state_dict()["param_groups"], state["groups"], strict=True)]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # An optimizer knows a parameter by its number, which a file has as text.
        moments = {int(key): ranks.moments(entry, parameters[int(key)]) for key, entry in state["optimizer"].items()}
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        if self._accelerator.scaler and state["scaler"]:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.cell.method.load_state_dict(self._model, state["method"])


def make_schedule(optimizer: Any, cell: Cell, updates: int) -> Any:
    """The recipe's schedule, counted in updates."""
    recipe = cell.recipe
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * updates)
    return hf.get_scheduler(recipe.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=updates)
