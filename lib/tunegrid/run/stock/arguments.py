"""A recipe as `TrainingArguments`, and the collator that the guides take for its problem."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.run.device import resolve_precision
from tunegrid.run.evaluation import EVAL_BATCH

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
