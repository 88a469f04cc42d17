"""The training loop. In: a model, a codec and its features, a recipe. Out: a trained model, and the course of its training.

One loop for every cell. Its unit is the update: one or more micro-batches, one optimizer step, one schedule step. The loss
of an update is the mean over all its targets, however they are cut into micro-batches.
"""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from random import Random
from typing import Any, TypeVar

import accelerate
import torch
import transformers as hf
from torch import Tensor, nn

from lib.codecs.base import Batch, Codec, Feature, all_tokens, on, real_tokens
from lib.data.sources import Row
from lib.errors import InputError, first_line
from lib.grid.cells import Cell
from lib.run.device import out_of_memory, resolve_precision
from lib.run.fingerprints import model_marks
from lib.run.groups import digest, grouped, moved, norms, sampled
from lib.run.meter import Meter, ledger, tensor_bytes
from lib.run.progress import Progress

T = TypeVar("T")
BUCKET = 20  # batches sorted by length together: wide enough to save padding, narrow enough to keep the order random
MOVED = 3  # updates that movement is measured over: a warm-up's first one has a rate of 0
CHECK_EVERY = 10  # updates between looks at the loss: every look makes a GPU wait
SCHEDULES = tuple(kind.value for kind in hf.SchedulerType)
# The fields of `Training` in a trainer's state. Losses are kept apart; the rows of `chosen_on` are not kept.
COURSE = (
    "updates", "memory", "learning_rates", "group_rates", "gradient_norms", "clipped_norm", "epoch_scores", "chosen_epoch",
    "skipped", "order", "micro_batch", "fallbacks", "first_step",
)  # fmt: skip
Validate = Callable[[], tuple[float, Sequence[Row]]]  # a score of the model, higher is better, and the rows it was taken on


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
        first_step: figures that tell a change without statistics: `lib.run.probe`'s, and those of the first update.
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


def epoch_batches(features: Sequence[Feature], size: int, seed: int, epoch: int) -> list[list[Feature]]:
    """One epoch in batches of like length: shuffle, sort within buckets, shuffle the batches.

    The order depends on the seed and the epoch only: all methods of a triple see the same.
    """
    rng = Random(f"{seed}-{epoch}")
    shuffled = rng.sample(list(features), len(features))
    batches = [
        list(batch)
        for start in range(0, len(shuffled), size * BUCKET)
        for batch in _chunks(sorted(shuffled[start : start + size * BUCKET], key=lambda f: len(f.input_ids)), size)
    ]
    rng.shuffle(batches)
    return batches


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def make_schedule(optimizer: Any, cell: Cell, updates: int) -> Any:
    """The recipe's schedule, counted in updates. Raises InputError for an unknown one."""
    recipe = cell.recipe
    if recipe.lr_scheduler_type not in SCHEDULES:
        raise InputError(f"{cell.id}: unknown schedule {recipe.lr_scheduler_type!r}; known are {', '.join(sorted(SCHEDULES))}")
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * updates)
    return hf.get_scheduler(recipe.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=updates)


class DoesNotFit(Exception):
    """Memory ran out in a forward or backward pass; no weight has changed yet."""


class Trainer:
    """One cell's training: made before it runs; audits look at it afterwards.

    Attributes:
        parameters: the model's, by name; `before` holds their marks before training.
        reached: names of parameters that got a gradient.
        last_group: the micro-batches of the last update.
        losses: mean loss of each update so far; `run` does not repeat updates that were made before it.
        best: weights of the best epoch so far; None where no epoch was scored yet.
        after_update: called after each update with this trainer, for example to save its state.
    """

    def __init__(self, cell: Cell, model: nn.Module, codec: Codec, features: Sequence[Feature], meter: Meter) -> None:
        """Make optimizer, schedule and precision for training `model` on `features`; raises InputError without features."""
        if not features:
            raise InputError(f"no training row fits {cell.id}: max_length {cell.recipe.max_length} cuts every answer off")
        self.cell, self.model, self.codec, self.features, self.meter = cell, model, codec, features, meter
        self.total = cell.recipe.planned_updates(len(features))
        precision, fallback = resolve_precision(cell, meter.device)
        self.course = Training(
            precision=precision,
            micro_batch=cell.recipe.per_device_train_batch_size,
            fallbacks=[fallback] if fallback else [],
        )
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a session trains many cells
        mixed = {"fp32": "no"}.get(self.course.precision, self.course.precision)
        self.accelerator = accelerate.Accelerator(mixed_precision=mixed, cpu=meter.device.type == "cpu")
        optimizer = cell.method.make_optimizer(model, cell)
        self.schedule = make_schedule(optimizer, cell, self.total)  # before accelerate wraps its step, to be wrapped with it
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.parameters = dict(model.named_parameters())
        self.trained = [p for p in self.parameters.values() if p.requires_grad]
        self.before = model_marks(model)
        self.reached: set[str] = set()
        self.last_group: Sequence[Sequence[Feature]] = ()
        self.losses: list[Tensor] = []
        self.best: dict[str, Tensor] | None = None
        self.after_update: Callable[[Trainer], None] = lambda trainer: None
        self._start: dict[str, Tensor] = {}
        self._random_states: dict[str, Tensor] | None = None

    def run(self, progress: Progress, validate: Validate | None = None) -> Training:
        """Train to the end, or to the first loss that is not a number. Of several epochs, keep the best one's weights.

        A course that was stopped before it began makes no update.
        """
        if self.course.stopped:
            return self.course
        hf.set_seed(self.cell.profile.seed)  # dropout: the same whatever happened while the model was built
        if self._random_states:
            set_random_states(self.meter.device, self._random_states)
        per_epoch = self.cell.recipe.updates_per_epoch(len(self.features))
        for epoch in range(max(0, len(self.losses) - 1) // per_epoch, math.ceil(self.total / per_epoch)):
            self._train_epoch(epoch, epoch * per_epoch, progress)
            if self.course.stopped:
                return self.course
            if validate and self.cell.recipe.num_train_epochs > 1 and len(self.course.epoch_scores) == epoch:
                score, self.course.chosen_on = validate()
                self._keep_better(epoch, score)
        if self.best is not None:
            self.model.load_state_dict(self.best, strict=False)
        return self.course

    def _train_epoch(self, epoch: int, before: int, progress: Progress) -> None:
        """Train the rest of an epoch, which began after `before` updates."""
        self.model.train()
        for group in islice(self.updates(epoch), len(self.losses) - before, self.total - before):
            self.losses.append(self.update(group))
            self._look(progress)
            if self.course.stopped:
                return
            self.after_update(self)

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, and the course so far, as nested mappings of tensors and plain values."""
        scaler = self.accelerator.scaler
        return {
            "weights": {name: p.detach() for name, p in self.parameters.items() if p.requires_grad},
            "best": self.best or {},
            "losses": torch.stack(self.losses).tolist() if self.losses else [],
            "course": {name: getattr(self.course, name) for name in COURSE},
            "reached": sorted(self.reached),
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "groups": {str(i): _settings(group) for i, group in enumerate(self.optimizer.optimizer.param_groups)},
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},  # functions
            "scaler": scaler.state_dict() if scaler else {},
            "method": self.cell.method.state_dict(self.model),
            "random": random_states(self.meter.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict`; `run` goes on from there, to the same weights, bit for bit on a CPU."""
        device = self.meter.device
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                self.parameters[name].copy_(tensor)
        optimizer = self.optimizer.optimizer
        groups = [group | state["groups"][str(i)] for i, group in enumerate(optimizer.state_dict()["param_groups"])]
        moments = {int(number): entry for number, entry in state.get("optimizer", {}).items()}
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        if self.accelerator.scaler and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.cell.method.load_state_dict(self.model, state.get("method", {}))
        self.course = replace(self.course, **state["course"], losses=list(state["losses"]))
        self.losses = [torch.tensor(loss, device=device) for loss in state["losses"]]
        self.best = {name: tensor.to(device) for name, tensor in state.get("best", {}).items()} or None
        self.reached = set(state["reached"])
        self._random_states = state["random"]
        resumed = f"resumed at update {self.course.updates} of {self.total}; seconds and throughput are of the rest"
        self.course.fallbacks = [*self.course.fallbacks, resumed]

    def updates(self, epoch: int) -> Iterator[Sequence[list[Feature]]]:
        """The epoch's updates, each a list of micro-batches."""
        recipe = self.cell.recipe
        batches = epoch_batches(self.features, recipe.per_device_train_batch_size, self.cell.profile.seed, epoch)
        return _chunks(batches, recipe.gradient_accumulation_steps)

    def update(self, group: Sequence[Sequence[Feature]]) -> Tensor:
        """One optimizer update on several micro-batches; return the mean loss over all their targets.

        Where memory runs out, the same rows are cut into micro-batches of half the size, accumulated to the same update.
        """
        while True:
            self.last_group = [piece for features in group for piece in _chunks(features, self.course.micro_batch)]
            try:
                return self._step([self.codec.collate(features) for features in self.last_group], sum(map(len, group)))
            except DoesNotFit as error:
                cause = str(error)
            self._halve(cause)  # out here, where the error no longer keeps the failed pass alive

    def _halve(self, cause: str) -> None:
        size = self.course.micro_batch // 2
        where = f"update {self.course.updates + 1} of {self.total}"
        if not size:
            raise InputError(f"{self.cell.id} does not fit: memory runs out at {where} with one row at a time ({cause})")
        change = f"micro-batches of {size} in place of {self.course.micro_batch}, accumulated to the same update"
        self.course.fallbacks.append(f"out of memory at {where}: {change}")
        self.course.micro_batch = size
        self.optimizer.zero_grad()
        gc.collect()
        if self.meter.device.type == "cuda":
            torch.cuda.empty_cache()

    def _step(self, batches: Sequence[Batch], samples: int) -> Tensor:
        with self.meter.update(
            samples=samples, tokens=sum(map(real_tokens, batches)), padded_tokens=sum(map(all_tokens, batches))
        ):
            loss = self._backward(batches)
            self._clip()
            scale = self._scale()
            if not self.course.updates:
                self._see_gradients()
            self.optimizer.step()
            lost = self._scale() < scale  # fp16 overflowed: the update was lost, and the scale is lower for the next one
            self.course.learning_rates.append(self.schedule.get_last_lr()[0])
            self.course.group_rates.append([float(group["lr"]) for group in self.optimizer.param_groups])
            if lost:
                self.course.skipped.append(self.course.updates)
            else:
                self.cell.method.after_step(self.model, self.course.updates)
                self.schedule.step()
            if not self.course.memory:
                self._take_ledger()
            self.optimizer.zero_grad()
        self.course.updates += 1
        if self._start and self.course.updates in (MOVED, self.total):
            self._see_moved()
        examples = [feature.example for features in self.last_group for feature in features]
        self.course.order = sha256(f"{self.course.order}{examples}".encode()).hexdigest()[:16]
        return loss

    def _clip(self) -> None:
        norm = self.cell.recipe.max_grad_norm
        before = None if norm is None else float(self.accelerator.clip_grad_norm_(self.trained, norm))
        self.course.gradient_norms.append(before)
        if before is not None and not self.course.updates:
            gradients = [p.grad for p in self.trained if p.grad is not None]
            self.course.clipped_norm = float(nn.utils.get_total_norm(gradients))

    def _with_gradient(self) -> dict[str, Tensor]:
        """The parameters that the update moves, by name."""
        return {name: p for name, p in self.parameters.items() if p.grad is not None}

    def _see_gradients(self) -> None:
        """Gradients of the first update by group, after clipping; and the weights that movement is measured from."""
        present = self._with_gradient()
        gradients = {name: p.grad for name, p in present.items() if p.grad is not None}
        self.course.first_step |= {
            "gradients": norms(grouped(self.cell, self.model, present), gradients),
            "drawn": digest(random_states(self.meter.device)["cpu"].tolist()),
        }
        self._start = sampled(present)

    def _see_moved(self) -> None:
        """How far each group moved in the first updates."""
        self.course.first_step["moved"] = moved(self.cell, self.model, self._start, self.parameters)
        self._start = {}

    def _scale(self) -> float:
        """The factor of fp16 losses. Where a fused optimizer skips an update inside its kernel, only the factor shows it."""
        scaler = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler else 1.0

    def divisors(self, batches: Sequence[Batch]) -> list[int]:
        """The divisor of each micro-batch's summed loss: the targets of the whole update."""
        count = sum(self.codec.targets(batch) for batch in batches)
        return [count] * len(batches)

    def accumulated(self, group: Sequence[Sequence[Feature]], names: Iterable[str]) -> list[Tensor]:
        """The gradients that an update on these micro-batches would have, of some parameters; nothing is applied or kept."""
        self.optimizer.zero_grad()
        self._backward([self.codec.collate(features) for features in group])
        wanted = [self.parameters[name] for name in names]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad / self._scale() for p in wanted]
        self.optimizer.zero_grad()
        return gradients

    def _backward(self, batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), device=self.meter.device)
        try:
            for batch, count in zip(batches, self.divisors(batches), strict=True):
                with self.accelerator.autocast():
                    loss = self.codec.loss(self.model, on(self.meter.device, batch)) / count
                self.accelerator.backward(loss)
                total += loss.detach()
            penalty = self.cell.method.penalty(self.model)
            if penalty is not None:
                self.accelerator.backward(penalty)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise DoesNotFit(first_line(error)) from None
            raise
        return total

    def _take_ledger(self) -> None:
        """Count bytes once, while gradients and optimizer state are in place; they are the same in every update."""
        self.reached = {name for name, p in self.parameters.items() if p.grad is not None}
        gradients = tensor_bytes(p.grad for p in self.trained if p.grad is not None)
        self.course.memory = ledger(self.model, self.optimizer, gradients)

    def _look(self, progress: Progress) -> None:
        """Fetch the losses now and then: for the progress line, and to stop at one that is not a number."""
        done = len(self.losses)
        if done % CHECK_EVERY and done != self.total:
            return
        fresh = torch.stack(self.losses[len(self.course.losses) :]).tolist()
        self.course.losses += fresh
        bad = next((i for i, loss in enumerate(self.course.losses) if not math.isfinite(loss)), None)
        if bad is not None:
            self.course.stopped = f"loss is {self.course.losses[bad]} at update {bad + 1} of {self.total}"
        progress.at(done, self.total, f"loss {fresh[-1]:.3f}  {_rate(self.meter)}")

    def _keep_better(self, epoch: int, score: float) -> None:
        """Keep the epoch's weights where they score higher than those of every epoch before."""
        self.course.epoch_scores.append(score)
        if self.best is None or score > max(self.course.epoch_scores[:-1]):
            self.course.chosen_epoch = epoch + 1
            self.best = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer's group holds beside its parameters: rates, and for some optimizers state of their own."""
    return {name: value for name, value in group.items() if name != "params"}


def _rate(meter: Meter) -> str:
    last = meter.updates[-CHECK_EVERY:]
    seconds = sum(meter.clock.seconds(update.began, update.ended) for update in last)
    return f"{sum(update.samples for update in last) / seconds:.0f} samples/s" if seconds else ""


def random_states(device: torch.device) -> dict[str, Tensor]:
    """RNG states, on which dropout depends."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    """Set the RNGs to these states."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
