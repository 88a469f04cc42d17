"""The training loop. In: a model, a codec and its features, a recipe. Out: a trained model, and the course of its training.

One loop for every cell. Its unit is the update: one or more micro-batches, one optimizer step, one schedule step. The loss
of an update is the mean over all its targets, however they are cut into micro-batches.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from typing import Any

import accelerate
import torch
import transformers as hf
from torch import Tensor, nn

from tunegrid.codecs.base import Batch, Codec, Feature, all_tokens, real_tokens
from tunegrid.codecs.features import lengths_of
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Method
from tunegrid.run.checksums import model_checksums
from tunegrid.run.clipping import Clipping
from tunegrid.run.course import COURSE, Training
from tunegrid.run.device import free_memory, random_states, replacements, resolve_precision, set_random_states
from tunegrid.run.first_updates import MOVED, FirstUpdates
from tunegrid.run.fitting import DoesNotFit, fitting
from tunegrid.run.meter import Meter, ledger, tensor_bytes
from tunegrid.run.order import chunks, epoch_batches
from tunegrid.run.progress import Progress
from tunegrid.run.ranks import ALONE, Ranks, full_tensor, local_shard
from tunegrid.run.scale import LossScale
from tunegrid.run.schedule import make_schedule

CHECK_EVERY = 10  # updates between looks at the loss: every look makes a GPU wait
Validate = Callable[[], tuple[float, Sequence[Row]]]  # a score of the model, higher is better, and the rows it was taken on


class Trainer:
    """One cell's training: made before it runs; audits look at it afterwards.

    Attributes:
        parameters: the model's, by name; `before` holds their checksums before training.
        stepped: what the optimizer steps, by name: these parameters, or this rank's parts of them.
        reached: names of parameters that got a gradient.
        sharded_model: the model, or its copy that ranks share out; `ddp_model` is what forward passes of training go through.
        last_group: the micro-batches of the last update, those of all ranks.
        losses: mean loss of each update so far; `run` does not repeat updates that were made before it.
        best: weights of the best epoch so far, in the host's memory; None where no epoch was scored yet.
        after_update: called after each update with this trainer, for example to save its state.
    """

    def __init__(
        self, cell: Cell, model: nn.Module, codec: Codec, features: Sequence[Feature], meter: Meter, ranks: Ranks = ALONE
    ) -> None:
        """Make optimizer, schedule and precision for training `model` on `features`; raises InputError without features."""
        if not features:
            raise InputError(f"no training row fits {cell.id}: max_length {cell.recipe.max_length} cuts every answer off")
        self.cell, self.model, self.codec, self.features, self.meter, self.ranks = cell, model, codec, features, meter, ranks
        self.total = cell.recipe.planned_updates(len(features))
        cell.method.plan(model, self.total)
        self.course = Training(
            precision=resolve_precision(cell, meter.device)[0],
            micro_batch=cell.recipe.per_device_train_batch_size,
            fallbacks=replacements(cell, meter.device),
        )
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a session trains many cells
        mixed = {"fp32": "no"}.get(self.course.precision, self.course.precision)
        self.accelerator = accelerate.Accelerator(mixed_precision=mixed, cpu=meter.device.type == "cpu")
        self.parameters, self.before = dict(model.named_parameters()), model_checksums(model)
        self.sharded_model = ranks.sharded_model(model, cell, self.course.precision)
        self.stepped = dict(self.sharded_model.named_parameters())
        optimizer = cell.method.make_optimizer(self.sharded_model, cell)  # LoRA-FA's freezes weights
        self.trained = [p for p in self.stepped.values() if p.requires_grad]
        self.clipping = Clipping(self.accelerator, self.trained, cell.recipe.max_grad_norm)
        self.ddp_model = ranks.ddp_model(self.sharded_model)
        self.schedule = make_schedule(optimizer, cell, self.total)  # before accelerate wraps its step, to be wrapped with it
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.loss_scale = LossScale(self.accelerator.scaler)
        self.reached: set[str] = set()
        self.last_group: Sequence[Sequence[Feature]] = ()
        self.losses: list[Tensor] = []
        self.best: dict[str, Tensor] | None = None
        self.after_update: Callable[[Trainer], None] = lambda trainer: None
        self._first = FirstUpdates(cell, model, self.stepped)
        self._random_states: dict[str, Tensor] | None = None
        self._unsettled: int | None = None  # the update of which is not known yet whether fp16 lost it

    def run(self, progress: Progress, validate: Validate | None = None) -> Training:
        """Train to the end, or to the first loss that is not a number. Of several epochs, keep the best one's weights.

        A course that was stopped before it began makes no update.
        """
        if self.course.stopped:
            return self.course
        hf.set_seed(self.ranks.seed(self.cell.profile.seed))  # dropout: the same whatever happened while the model was built
        if self._random_states:
            set_random_states(self.meter.device, self._random_states)
        per_epoch = self.cell.recipe.updates_per_epoch(len(self.features))
        for epoch in range(max(0, len(self.losses) - 1) // per_epoch, math.ceil(self.total / per_epoch)):
            with self.ranks.training(self.model, self.sharded_model):
                self._train_epoch(epoch, epoch * per_epoch, progress)
            if self.course.stopped:
                return self.course
            if validate and self.cell.recipe.num_train_epochs > 1 and len(self.course.epoch_scores) == epoch:
                with self.meter.phase("validate"):
                    score, self.course.chosen_on = validate()
                with self.meter.phase("keep_best"):
                    self._keep_better(epoch, score)
        if self.best is not None:
            with self.meter.phase("keep_best"):
                self.model.load_state_dict(self.best, strict=False)
                self.ranks.copy_to_sharded(self.model, self.sharded_model)
        return self.course

    def _train_epoch(self, epoch: int, before: int, progress: Progress) -> None:
        """Train the rest of an epoch, which began after `before` updates."""
        self.ddp_model.train()
        for group in islice(self.updates(epoch), len(self.losses) - before, self.total - before):
            self.losses.append(self.update(group))
            self._look(progress)
            if self.course.stopped:
                return
            self.after_update(self)

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, and the course so far, as nested mappings of tensors and plain values."""
        self._fetch()
        scaler = self.accelerator.scaler
        return {
            "weights": {name: p.detach() for name, p in self.stepped.items() if p.requires_grad},
            "best": self.best or {},
            "losses": torch.stack(self.losses).tolist() if self.losses else [],
            "course": {name: getattr(self.course, name) for name in COURSE},
            "reached": sorted(self.reached),
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "groups": {
                str(i): {k: v for k, v in g.items() if k != "params"} for i, g in enumerate(self.optimizer.param_groups)
            },
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},  # functions
            "scaler": scaler.state_dict() if scaler else {},
            "method": self.cell.method.state_dict(self.model),
            "random": random_states(self.meter.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict`; `run` goes on from there, to the same weights, bit for bit on a CPU."""
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                local_shard(self.stepped[name]).copy_(tensor)
        self.ranks.copy_from_sharded(self.model, self.sharded_model)
        optimizer = self.optimizer.optimizer
        groups = [group | state["groups"][str(i)] for i, group in enumerate(optimizer.state_dict()["param_groups"])]
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        kept = {int(number): entry for number, entry in state.get("optimizer", {}).items()}
        moments = {number: self.ranks.moments(entry, stepped[number]) for number, entry in kept.items()}
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        if self.accelerator.scaler and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.cell.method.load_state_dict(self.model, state.get("method", {}))
        self.course = replace(self.course, **state["course"], losses=list(state["losses"]))
        self.losses = [torch.tensor(loss, device=self.meter.device) for loss in state["losses"]]
        self.best = dict(state.get("best", {})) or None
        self.reached = set(state["reached"])
        self._random_states = state["random"]
        resumed = f"resumed at update {self.course.updates} of {self.total}; seconds and throughput are of the rest"
        self.course.fallbacks = [*self.course.fallbacks, resumed]

    def updates(self, epoch: int) -> Iterator[Sequence[list[Feature]]]:
        """The epoch's updates, each a list of micro-batches."""
        recipe = self.cell.recipe
        batches = epoch_batches(lengths_of(self.features), recipe.per_device_train_batch_size, self.cell.profile.seed, epoch)
        for group in chunks(batches, recipe.gradient_accumulation_steps):
            yield [[self.features[place] for place in batch] for batch in group]

    def update(self, group: Sequence[Sequence[Feature]]) -> Tensor:
        """One optimizer update on several micro-batches; return the mean loss over all their targets.

        Where memory runs out, the same rows are cut into micro-batches of half the size, accumulated to the same update.
        """
        while True:
            self.last_group = [piece for features in group for piece in chunks(features, self.course.micro_batch)]
            try:
                return self._step()
            except DoesNotFit as error:
                cause = str(error)
            self._halve(cause)  # out here, where the error no longer keeps the failed pass alive

    def _halve(self, cause: str) -> None:
        size = self.course.micro_batch // 2
        where = f"update {self.course.updates + 1} of {self.total}"
        if self.ranks.count > 1:  # which may have summed some of their gradients already
            rank = f"rank {self.ranks.rank} of {self.ranks.count}"
            way_out = "take more ranks" + ("" if self.ranks.holds_parts else ", or share out its weights, too, with --fsdp")
            raise InputError(f"{self.cell.id} does not fit: memory runs out at {where} on {rank} ({cause}); {way_out}")
        if not size:
            raise InputError(f"{self.cell.id} does not fit: memory runs out at {where} with one row at a time ({cause})")
        change = f"micro-batches of {size} in place of {self.course.micro_batch}, accumulated to the same update"
        self.course.fallbacks.append(f"out of memory at {where}: {change}")
        self.course.micro_batch = size
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
                    self.clipping.clip(self.course)
                    self._settle()
                    if not self.course.updates:
                        self.course.first_step |= self._first.gradients(self.meter.device)
                    self.loss_scale.step(self.optimizer)
            except DoesNotFit as error:  # activations are gone by now: fewer rows at once would not help
                cause = f"in the optimizer's step of update {self.course.updates + 1} ({error})"
                raise InputError(f"{self.cell.id} does not fit: memory runs out {cause}") from None
            self.course.learning_rates.append(self.schedule.get_last_lr()[0])
            self.course.group_rates.append([float(group["lr"]) for group in self.optimizer.param_groups])
            self._unsettled = self.course.updates
            if not self._settles_late():
                self._settle()
            if not self.course.memory:
                self._take_ledger()
            self.optimizer.zero_grad()
        self.course.updates += 1
        if self.course.updates == min(MOVED, self.total):
            self.course.first_step |= self._first.moved()
        examples = [feature.example for features in self.last_group for feature in features]
        self.course.order = sha256(f"{self.course.order}{examples}".encode()).hexdigest()[:16]
        return loss

    def _settles_late(self) -> bool:
        """Whether an update is settled when the next one is about to step: in fp16, so that no device waits for its host.

        What a method does after a step needs the gradients of that step, so it cannot wait.
        """
        return self.loss_scale.scaler is not None and type(self.cell.method).after_step is Method.after_step

    def _settle(self) -> None:
        """Advance the schedule past the last update, unless fp16 lost it."""
        update, self._unsettled = self._unsettled, None
        if update is None:
            return
        if self.loss_scale.lost():
            self.course.skipped.append(update)
        else:
            self.cell.method.after_step(self.model, update)
            self.schedule.step()

    def _fetch(self) -> None:
        """Bring what updates left on the device to the host."""
        self._settle()
        self.clipping.fetch(self.course)

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
        gradients = [full_tensor(torch.zeros_like(p) if p.grad is None else p.grad / self.loss_scale.factor) for p in wanted]
        self.optimizer.zero_grad()
        return loss, gradients

    def _own(self, group: Sequence[Sequence[Feature]]) -> Sequence[Sequence[Feature]]:
        """This rank's micro-batches of an update; smaller ones where memory ran out."""
        if self.ranks.count > 1 or self.course.micro_batch < self.cell.recipe.per_device_train_batch_size:
            return self.ranks.share(group, self.course.micro_batch)
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
            for place, (batch, count) in enumerate(zip(batches, divisors, strict=True), 1):
                with self.ranks.no_sync(self.ddp_model) if place < len(batches) else nullcontext():
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

    def _take_ledger(self) -> None:
        """Count bytes once, while gradients and optimizer state are in place; they are the same in every update."""
        self.reached = {name for name, p in self.stepped.items() if p.grad is not None}
        gradients = tensor_bytes(p.grad for p in self.trained if p.grad is not None)
        self.course.memory = ledger(self.sharded_model, self.optimizer, gradients)

    def _look(self, progress: Progress) -> None:
        """Fetch the losses now and then: for the progress line, and to stop at one that is not a number."""
        done = len(self.losses)
        if done % CHECK_EVERY and done != self.total:
            return
        self._fetch()
        fresh = torch.stack(self.losses[len(self.course.losses) :]).tolist()
        self.course.losses += fresh
        bad = next((i for i, loss in enumerate(self.course.losses) if not math.isfinite(loss)), None)
        if bad is not None:
            self.course.stopped = f"loss is {self.course.losses[bad]} at update {bad + 1} of {self.total}"
        progress.at(done, self.total, f"loss {fresh[-1]:.3f}  {self.meter.recent_rate(CHECK_EVERY, self.ranks.count)}")

    def _keep_better(self, epoch: int, score: float) -> None:
        """Keep the epoch's weights where they score higher than those of every epoch before."""
        self.course.epoch_scores.append(score)
        if self.best is None or score > max(self.course.epoch_scores[:-1]):
            self.course.chosen_epoch = epoch + 1
            # On the host: on the device it would stand in the peaks of all that follows.
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in self.model.named_parameters() if p.requires_grad}
