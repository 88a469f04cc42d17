"""Training loops beside each other: ours, transformers' Trainer, PEFT's loop, a bare one. In: a race. Out: losses, seconds.

All take the loss from the cell's codec: transformers lets padding be an answer, and averages classified rows over a
micro-batch where the recipe averages over the update; our own heads compute no loss at all.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.codecs.base import IGNORED, Batch, Codec, Feature, on
from lib.grid.cells import Cell
from lib.grid.optimizers import adamw_torch
from lib.run.device import autocast
from lib.run.meter import Meter
from lib.run.order import chunks, micro_batches
from lib.run.peers import Peak, Race, Stopwatch, as_before
from lib.run.progress import Progress
from lib.run.schedule import make_schedule
from lib.run.training import Trainer

Lap = Callable[[], None]  # tells the end of an update
Losses = Sequence[Tensor | float]  # of each update


def ours(race: Race, lap: Lap) -> Losses:
    """Our own loop, made as the pipeline makes it."""
    trainer = Trainer(race.cell, race.model, race.codec, race.features, Meter(device=race.device))
    trainer.after_update = lambda _: lap()
    return trainer.run(Progress("peers", lambda standing: None)).losses


def bare(race: Race, lap: Lap) -> Losses:
    """Forward, backward and step on our batches, which lie on the device: nothing that trains like this can be faster."""
    cut = [micro_batches(group, race.cell, race.device) for group in race.groups]
    groups = [[race.codec.placed(race.codec.collate(features), race.device) for features in group] for group in cut]
    return _loop(race, groups, race.cell.method.make_optimizer(race.model, race.cell), lap)


def peft_loop(race: Race, lap: Lap) -> Losses:
    """The loop of PEFT's documentation: a DataLoader, torch's AdamW as it comes, a linear schedule, no trainer."""
    cell = race.cell
    rows: Any = race.ordered  # a list, which is a data set to a DataLoader
    loader = DataLoader(rows, batch_size=cell.recipe.per_device_train_batch_size, collate_fn=race.codec.collate)
    optimizer = cell.method.make_optimizer(race.model, cell)
    if cell.optimizer is adamw_torch:
        optimizer = torch.optim.AdamW(cell.method.parameter_groups(race.model, cell), lr=cell.recipe.learning_rate)
    return _loop(race, _grouped(loader, race), optimizer, lap)


def _grouped(loader: Iterable[Batch], race: Race) -> Iterator[list[Batch]]:
    batches = iter(loader)
    while group := [on(race.device, batch) for batch in islice(batches, race.cell.recipe.gradient_accumulation_steps)]:
        yield group


def _loop(race: Race, groups: Iterable[list[Batch]], optimizer: torch.optim.Optimizer, lap: Lap) -> Losses:
    recipe, codec, model = race.cell.recipe, race.codec, race.model
    schedule = make_schedule(optimizer, race.cell, recipe.max_steps)
    scaler = torch.amp.GradScaler(race.device.type, enabled=race.precision == "fp16")
    trained = [p for p in model.parameters() if p.requires_grad]
    losses = []
    model.train()
    for group in groups:
        count, total = sum(map(codec.targets, group)), torch.zeros((), device=race.device)
        for batch in group:
            total += _backward(race, batch, count, scaler)
        if recipe.max_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
        lap()
    return losses


def _backward(race: Race, batch: Batch, count: int, scaler: torch.amp.GradScaler) -> Tensor:
    """Add a batch's gradients; return its part of the loss, which no longer holds the graph that it came from."""
    with autocast(race.precision, race.device):
        loss = race.codec.loss(race.model, batch) / count
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def hf_trainer(race: Race, lap: Lap) -> Losses:
    """The Trainer of transformers at its best: padded to the longest row of a batch, fused AdamW, nothing logged or saved."""
    return _hf_trained(race, lap, race.ordered, race.codec.collate, optim=_fused(race), logging_nan_inf_filter=False)


def hf_trainer_defaults(race: Race, lap: Lap) -> Losses:
    """Trainer as the example scripts leave it: rows padded to max_length beforehand, all else by default."""
    padded = [padded_to_max(race.codec, feature) for feature in race.ordered]
    own = {} if race.cell.optimizer is adamw_torch else {"optim": race.cell.recipe.optim}  # the recipe names another kind
    return _hf_trained(race, lap, padded, hf.default_data_collator, **own)


def _fused(race: Race) -> str:
    return "adamw_torch_fused" if race.cell.optimizer is adamw_torch else race.cell.recipe.optim


def padded_to_max(codec: Codec, feature: Feature) -> dict[str, Any]:
    """A feature as example scripts keep one: lists, padded to the recipe's lengths."""
    recipe, batch = codec.recipe, codec.collate([feature])
    row: dict[str, Any] = {}
    for name, tensor in batch.items():
        values = tensor[0].tolist()
        if isinstance(values, list) and not (name == "labels" and codec.extracts):
            of_target = "decoder_input_ids" in batch and (name == "labels" or name.startswith("decoder_"))
            length = (recipe.max_target_length if of_target else None) or recipe.max_length
            fill = IGNORED if name == "labels" else codec.pad_id if name.endswith("input_ids") else 0
            values += [fill] * (length - len(values))
        row[name] = values
    return row


class _Timed(hf.TrainerCallback):  # type: ignore[misc] # transformers' class
    """Tells the end of each update."""

    def __init__(self, lap: Lap) -> None:
        self._lap = lap

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An update has ended, gradients cleared."""
        self._lap()


class _OfCodec(hf.Trainer):  # type: ignore[misc] # transformers' class
    """Trainer with the codec's loss; keeps the loss of each micro-batch."""

    def __init__(self, codec: Codec, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by what the whole update holds
        self._loss_shifts_labels = False  # labels are counted as they are
        self._codec, self.losses = codec, list[Tensor]()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Tensor:
        """The mean over the update's targets; a span has two labels."""
        loss: Tensor = self._codec.loss(model, inputs) / (num_items_in_batch / (2 if self._codec.extracts else 1))
        self.losses.append(loss.detach())
        return loss


def _hf_trained(race: Race, lap: Lap, rows: Sequence[Any], collate: Any, **options: Any) -> Losses:
    recipe = race.cell.recipe
    with tempfile.TemporaryDirectory() as folder:
        arguments = hf.TrainingArguments(
            **common_arguments(race, folder),
            max_steps=recipe.max_steps,
            per_device_train_batch_size=recipe.per_device_train_batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            lr_scheduler_type=recipe.lr_scheduler_type,
            max_grad_norm=recipe.max_grad_norm or 0.0,
            train_sampling_strategy="sequential",  # the rows come in our order
            **options,
        )
        with as_before(race.model):
            trainer = _OfCodec(
                race.codec,
                model=race.model,
                args=arguments,
                train_dataset=rows,
                data_collator=collate,
                callbacks=[_Timed(lap)],
            )
            trainer.train()
    return [torch.stack(list(parts)).sum() for parts in chunks(trainer.losses, recipe.gradient_accumulation_steps)]


def common_arguments(race: Race, folder: str) -> dict[str, Any]:
    """What Trainer is told for training and for prediction: where, in which precision, and to be silent."""
    return {
        "output_dir": folder,
        "use_cpu": race.device.type == "cpu",
        "bf16": race.precision == "bf16",
        "fp16": race.precision == "fp16",
        "seed": race.cell.profile.seed,
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


DEFAULTS = "trainer defaults"
TRAINING: Mapping[str, Callable[[Race, Lap], Losses]] = {
    "ours": ours,
    "trainer": hf_trainer,
    DEFAULTS: hf_trainer_defaults,
    "peft loop": peft_loop,
    "bare": bare,
}


OF_OURS = ("ours", "bare")  # run in a process of ours


def contenders(cell: Cell) -> list[str]:
    """Those that a cell has: PEFT's loop is for methods that adapt."""
    return [name for name in TRAINING if name != "peft loop" or cell.method.adapts]


@dataclass(frozen=True, kw_only=True)
class Lapse:
    """What one contender took in one round.

    Attributes:
        peak_gib: the most that was allocated on the GPU; None on a CPU, where one process has one resident set.
    """

    seconds: float
    peak_gib: float | None
    losses: list[float]


def raced(race: Race, name: str) -> Lapse:
    """One contender's training from the start, timed after its first update."""
    race.restore()
    watch = Stopwatch(device=race.device, updates=race.cell.recipe.max_steps)
    peaks = Peak(race.device)
    losses = TRAINING[name](race, watch.lap)
    return Lapse(seconds=watch.seconds, peak_gib=peaks.gib(), losses=[float(loss) for loss in losses])
