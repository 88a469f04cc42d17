"""How faults break rows, training, scoring, serving and saved records."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunegrid.data.splits import Splits, load_splits
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import TOKEN_ROWS
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import SA
from tunegrid.record import Record
from tunegrid.run.evaluation import Evaluation
from tunegrid.run.serving import Serving
from tunegrid.run.stepper import make_schedule
from tunegrid.run.training import Trainer

# Rows


def chosen_on_test(rows: list[Any], splits: Splits) -> list[Any]:
    """The epoch is chosen on the rows it is then scored on."""
    return splits.test


def shuffled_labels(splits: Splits, folder: Path) -> Splits:
    """Labels are dealt out again among the training rows."""
    labels = [row["label"] for row in splits.train]
    Random(0).shuffle(labels)
    return replace(splits, train=[row | {"label": label} for row, label in zip(splits.train, labels, strict=True)])


def tested_rows_trained_on(splits: Splits, folder: Path) -> Splits:
    """Some test rows are in train, too."""
    return replace(splits, train=[*splits.train, *splits.test[:5]])


# Training and scoring


def summed(trainer: Trainer, folder: Path) -> Trainer:
    """Each micro-batch's mean counts in full, so that the update's loss is their sum."""
    trainer.divisors = lambda batches: [trainer.codec.targets(batch) for batch in batches]
    return trainer


def mean_of_each_rank(trainer: Trainer, folder: Path) -> Trainer:
    """Each rank divides by its own targets, and the update is the mean of the ranks, as by DDP itself."""
    trainer.divisors = lambda batches: [trainer.ranks.count * sum(map(trainer.codec.targets, batches))] * len(batches)
    return trainer


def stretched(trainer: Trainer, folder: Path) -> Trainer:
    """The schedule is made for as many steps as there are micro-batches."""
    steps = trainer.total * trainer.cell.recipe.gradient_accumulation_steps
    trainer.stepper.schedule = make_schedule(trainer.optimizer.optimizer, trainer.cell, steps)
    return trainer


def cut_short(trainer: Trainer, folder: Path) -> Trainer:
    """The loop ends after a quarter of its updates, and says nothing."""
    updates = trainer.updates
    trainer.updates = lambda epoch: islice(updates(epoch), trainer.total // 4)
    return trainer


def zeroed_between(trainer: Trainer, folder: Path) -> Trainer:
    """Gradients are cleared before every micro-batch, so that an update has those of its last one."""
    backward = trainer.accelerator.backward

    def cleared(loss: Tensor) -> None:
        trainer.optimizer.zero_grad()
        backward(loss)

    trainer.accelerator.backward = cleared
    return trainer


def hardly_clipped(trainer: Trainer, folder: Path) -> Trainer:
    """Gradients are clipped at a bound that they hardly reach."""
    stepper = trainer.stepper
    stepper.cell = replace(stepper.cell, recipe=replace(stepper.cell.recipe, max_grad_norm=100.0))
    return trainer


def one_group_scheduled(trainer: Trainer, folder: Path) -> Trainer:
    """The schedule moves the first group of parameters; the second one keeps its rate."""
    trainer.stepper.schedule.lr_lambdas[1] = lambda update: 1.0
    return trainer


def impossible_numbers(score: Callable[[Any], Evaluation], folder: Path) -> Callable[[Any], Evaluation]:
    """More answers match exactly than match at all."""
    return lambda rows: replace(score(rows), scores={"exact_match": 62.6, "f1": 62.1})


def points_of_neighbours(score: Callable[[Any], Evaluation], folder: Path) -> Callable[[Any], Evaluation]:
    """Every row has the points of the row before it; their mean is right."""

    def shifted(rows: Any) -> Evaluation:
        evaluation = score(rows)
        return replace(evaluation, examples={name: [p[-1], *p[:-1]] for name, p in evaluation.examples.items()})

    return shifted


# Saving and serving


def head_not_saved(serving: Serving, folder: Path) -> Serving:
    """The new head is left out of the saved adapter, as if its config had never named it."""

    class Headless(type(serving)):
        def save(self, cell: Cell, model: Any, tokenizer: Any, folder: Path) -> None:
            super().save(cell, model, tokenizer, folder)
            leave_out(folder, *cell.head.new_modules, modules_to_save=None)

    return Headless()


def token_row_not_saved(serving: Serving, folder: Path) -> Serving:
    """The new token's trained row is left out; the embedding that is saved has the row that the token was drawn with."""

    class Rowless(type(serving)):
        def save(self, cell: Cell, model: Any, tokenizer: Any, folder: Path) -> None:
            super().save(cell, model, tokenizer, folder)
            leave_out(folder, TOKEN_ROWS, trainable_token_indices=None)

    return Rowless()


def leave_out(folder: Path, *parts: str, **fields: Any) -> None:
    """Drop the tensors with these parts in their names from a saved adapter, and change fields of its config."""
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file({name: t for name, t in load_file(weights).items() if not set(parts) & set(name.split("."))}, weights)
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def merged_twice(serving: Serving, folder: Path) -> Serving:
    """The base that the adapter is merged into has it merged already."""

    class Twice(type(serving)):
        def merge(self, model: Any) -> Any:
            model.merge_adapter()
            for layer in model.modules():
                if isinstance(layer, LoraLayer):
                    layer.merged_adapters.clear()  # nobody remembers
            return super().merge(model)

    return Twice()


# Saved records


def fewer_rows(first: Record, second: Record) -> None:
    """The second method of a triple trains on fewer rows."""
    splits = load_splits(SA, QUICK_PROFILE)
    second.data.fingerprint = replace(splits, train=splits.train[:500]).fingerprint


def copied_row(first: Record, second: Record) -> None:
    """The second cell's row has the first cell's results."""
    second.scores, second.training, second.evaluation = first.scores, first.training, first.evaluation


def copied_scores(first: Record, second: Record) -> None:
    """The second cell has the first one's scores and predictions, and the course of its own training."""
    second.scores, second.examples = first.scores, first.examples
