"""Trains by the libraries' own `Trainer`, and keeps what it saw and did. Nothing of ours is in its way: hooks only look."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tunegrid.codecs.base import Batch
from tunegrid.grid.tasks import Problem
from tunegrid.run.device import random_states
from tunegrid.run.stock.arguments import arguments_of, collator_of
from tunegrid.run.stock.start import Start

SKIPPED = 1  # updates that warm up, and are not timed


@dataclass(kw_only=True)
class Course:
    """What a training saw and did.

    Attributes:
        batches: micro-batches as the model was given them; `random` are the generators' states before each.
        losses, norms, rates: one of each update, as Trainer logs them.
        weights: those that train, by name, at the end.
        seconds: of the timed updates; `samples` are their rows.
    """

    batches: list[Batch] = field(default_factory=list)
    random: list[Mapping[str, Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    samples: int = 0


class Watch(hf.TrainerCallback):
    """Notes when updates end."""

    def __init__(self) -> None:
        """Nothing noted yet."""
        self.ended: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """One more."""
        self.ended.append(time.perf_counter())


def trainer_of(start: Start, model: Any, tokenizer: Any, rows: Any, folder: Path, device: torch.device, **changes: Any) -> Any:
    """The library's trainer of a model on rows in tokens; `changes` are fields of TrainingArguments."""
    kind: Any = hf.Seq2SeqTrainer if start.cell.task.problem is Problem.GENERATE else hf.Trainer
    return kind(
        model=model,
        args=arguments_of(start.cell, folder, device, **changes),
        train_dataset=rows,
        data_collator=collator_of(start.cell, tokenizer, model),
        processing_class=tokenizer,
    )


def trained(trainer: Any, resume_from: Path | None = None) -> Course:
    """Train, and keep the course."""
    course, watch, model = Course(), Watch(), trainer.model
    device = trainer.args.device

    def note(module: Any, inputs: Any, named: Mapping[str, Any]) -> None:
        if module.training:
            course.batches.append({name: value.detach().clone() for name, value in named.items() if isinstance(value, Tensor)})
            course.random.append(random_states(device))

    trainer.add_callback(watch)
    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    finally:
        handle.remove()
        trainer.remove_callback(watch)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    course.losses, course.norms, course.rates = (
        [float(entry.get(name, 0.0)) for entry in logs] for name in ("loss", "grad_norm", "learning_rate")
    )
    course.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    per_update = trainer.args.gradient_accumulation_steps
    if len(watch.ended) > SKIPPED:
        course.seconds = watch.ended[-1] - watch.ended[SKIPPED - 1]
        course.samples = sum(len(batch["input_ids"]) for batch in course.batches[SKIPPED * per_update :])
    return course
