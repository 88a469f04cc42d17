"""Trains by the libraries' own `Trainer`, and keeps what it saw and did. Nothing of ours is in its way: hooks only look."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tunegrid.codecs.base import Batch
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.run.device import random_states, resolve_precision
from tunegrid.run.evaluate import EVAL_BATCH
from tunegrid.run.stock.start import Start

OPTIMIZERS = {"adamw_torch": "adamw_torch_fused"}  # ours is torch's fused one, and so is TrainingArguments' default


def arguments_of(cell: Cell, folder: Path, device: torch.device, **changes: Any) -> Any:
    """What `Trainer` is told; `changes` are fields of TrainingArguments, for one run of several."""
    recipe, precision = cell.recipe, resolve_precision(cell, device)[0]
    generates = cell.task.problem is Problem.GENERATE
    kind: Any = hf.Seq2SeqTrainingArguments if generates else hf.TrainingArguments
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": recipe.per_device_train_batch_size,
        "per_device_eval_batch_size": EVAL_BATCH,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "max_steps": recipe.max_steps or -1,
        "num_train_epochs": recipe.num_train_epochs,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "warmup_steps": recipe.warmup_steps or recipe.warmup_ratio,  # below 1 it is a share
        "max_grad_norm": recipe.max_grad_norm or 0.0,
        "optim": OPTIMIZERS.get(recipe.optim, recipe.optim),
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "train_sampling_strategy": "group_by_length",
        "seed": cell.profile.seed,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return kind(**settings | changes)


def collator_of(cell: Cell, tokenizer: Any, model: Any) -> Any:
    """The guides' collator: padding for a class or a span, seq2seq for pairs of texts, language modelling for one text."""
    if cell.task.problem is not Problem.GENERATE:
        return hf.DataCollatorWithPadding(tokenizer)
    if model.config.is_encoder_decoder:
        return hf.DataCollatorForSeq2Seq(tokenizer, model=model)
    return hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)


@dataclass(kw_only=True)
class Course:
    """What a training saw and did.

    Attributes:
        batches: micro-batches as the model was given them; `random` are the generators' states before each.
        losses, norms, rates: one of each update, as Trainer logs them.
        weights: those that train, by name, at the end.
    """

    batches: list[Batch] = field(default_factory=list)
    random: list[Mapping[str, Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


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
    course, model = Course(), trainer.model
    device = trainer.args.device

    def note(module: Any, inputs: Any, named: Mapping[str, Any]) -> None:
        if module.training:
            course.batches.append({name: value.detach().clone() for name, value in named.items() if isinstance(value, Tensor)})
            course.random.append(random_states(device))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    finally:
        handle.remove()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    course.losses, course.norms, course.rates = (
        [float(entry.get(name, 0.0)) for entry in logs] for name in ("loss", "grad_norm", "learning_rate")
    )
    course.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return course
