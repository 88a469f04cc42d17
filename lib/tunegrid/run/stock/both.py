"""Both sides of a cell, made when a stage first asks for them: the libraries' path, and ours on the same rows and weights."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tunegrid.codecs.base import Batch, Feature
from tunegrid.codecs.features import chunks
from tunegrid.data.sources import Row
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.prepare import prepare
from tunegrid.run.stock.course import Course, trained, trainer_of
from tunegrid.run.stock.known import causal, known_of
from tunegrid.run.stock.oracle import Replayed, oracle_codec, with_biases_undecayed, with_known_divisors
from tunegrid.run.stock.start import KEPT, Start, encoded, stock_model, write_start

BATCHES = 4.5  # of an epoch: the last one has half as many rows
UPDATES = 6  # an epoch of five batches, and one more
ACCUMULATED = 3  # batches an update; an epoch is an update of three and one of two, the last of which is half as large
ACCUMULATED_UPDATES = 3
CHECKPOINT = 1  # update after which the accumulating run is saved, in the middle of an epoch
TEST_ROWS = 10
TEST_BATCH = 4  # so that the last of three is smaller
SPAN_LABELS = ("start_positions", "end_positions")
Weights = dict[str, Tensor]


@dataclass(kw_only=True)
class Ours:
    """Our training on the batches of a course.

    Attributes:
        losses, rates: of each update.
        loss, norm: of the first update, before anything is clipped.
        weights: those that train, by name, at the end.
    """

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    loss: float = math.nan
    norm: float = math.nan
    weights: Weights = field(default_factory=dict)


class Both:
    """A cell's two sides.

    Attributes:
        cell: with the library's head, over the folder that both start from.
        known: ids of the differences that ours reckons with.
        rows, test: of training, and to answer.
    """

    def __init__(
        self,
        cell: Cell,
        train: Sequence[Row],
        test: Sequence[Row],
        folder: Path,
        device: torch.device,
        without: str = "",
    ) -> None:
        """A few rows of each split; `without` is the id of a known difference that ours is not to reckon with."""
        self.start: Start = write_start(cell, folder / "start")
        self.cell, self.folder, self.device = self.start.cell, folder, device
        self.known = known_of(self.cell) - {without}
        self.test = test[:TEST_ROWS]
        self.tokenizer = hf.AutoTokenizer.from_pretrained(self.start.folder, trust_remote_code=False)
        self.codec: Replayed = oracle_codec(self.cell, load_tokenizer(self.cell), self.known)
        self.rows = self._enough(train)

    def _enough(self, rows: Sequence[Row]) -> Sequence[Row]:
        """As many rows as make an epoch whose last batch is not full."""
        size = self.cell.recipe.per_device_train_batch_size
        count = math.ceil(size * BATCHES)
        while count > 1 and size > 1 and not len(self.codec.encode(rows[:count], training=True)) % size:
            count -= 1
        return rows[:count]

    # In tokens

    @cached_property
    def table(self) -> Any:
        """The rows in tokens, by the libraries."""
        return encoded(self.cell, self.tokenizer, self.rows, training=True)

    @cached_property
    def features(self) -> Sequence[Feature]:
        """The same, by our codec."""
        return self.codec.encode(self.rows, training=True)

    def inputs(self, feature: Feature) -> list[int]:
        """All ids that a model reads of a feature."""
        one_sequence = self.cell.task.problem is Problem.GENERATE and causal(self.cell)
        return [*feature.input_ids, *feature.target] if one_sequence else feature.input_ids

    # Models

    def ours(self) -> nn.Module:
        """Our untrained model."""
        return build(self.cell, load_tokenizer(self.cell), self.device)

    def theirs(self) -> Any:
        """The libraries' untrained model, with the weights of ours."""
        hf.set_seed(self.cell.profile.seed)
        model = stock_model(self.start, self.tokenizer, self.device)
        put(model, self.start_weights)
        return model

    @cached_property
    def start_weights(self) -> Weights:
        """What trains, before it does, by name."""
        return taken(self.ours())

    # Batches

    def collated(self, collator: Any) -> Iterator[tuple[Batch, Batch]]:
        """The rows in order, in batches of both sides, under our names."""
        size = self.cell.recipe.per_device_train_batch_size
        names = [name for name in self.table.column_names if name not in KEPT]
        table = self.table.select_columns(names)
        for indices in chunks(range(len(table)), size):
            yield (
                under_our_names(collator([table[i] for i in indices])),
                self.codec.collate([self.features[i] for i in indices]),
            )

    # Courses

    @cached_property
    def plain(self) -> tuple[Any, Course]:
        """The libraries' trainer after a training without accumulation, and its course."""
        return self._course("plain", max_steps=UPDATES, gradient_accumulation_steps=1)

    @cached_property
    def accumulating(self) -> tuple[Any, Course]:
        """The same with accumulation, saved in its middle."""
        return self._course(
            "accumulating",
            max_steps=ACCUMULATED_UPDATES,
            gradient_accumulation_steps=ACCUMULATED,
            save_strategy="steps",
            save_steps=CHECKPOINT,
        )

    @cached_property
    def resumed(self) -> Course:
        """The accumulating training once more, from a model of its own, taken up in its middle."""
        trainer = self._trainer(
            "resumed", max_steps=ACCUMULATED_UPDATES, gradient_accumulation_steps=ACCUMULATED, save_strategy="no"
        )
        _ = self.accumulating
        return trained(trainer, self.folder / "accumulating" / f"checkpoint-{CHECKPOINT}")

    def _course(self, name: str, **changes: Any) -> tuple[Any, Course]:
        return (trainer := self._trainer(name, **changes)), trained(trainer)

    def _trainer(self, name: str, **changes: Any) -> Any:
        return trainer_of(
            self.start,
            self.theirs(),
            self.tokenizer,
            self.table,
            self.folder / name,
            self.device,
            per_device_eval_batch_size=TEST_BATCH,
            **changes,
        )

    @cached_property
    def ours_plain(self) -> Ours:
        """Our training on the batches of the libraries' plain course."""
        return self.replay(self.plain[1], 1, UPDATES)

    @cached_property
    def ours_accumulating(self) -> Ours:
        """The same on those of the accumulating one."""
        return self.replay(self.accumulating[1], ACCUMULATED, ACCUMULATED_UPDATES)

    def replay(self, course: Course, accumulation: int, updates: int) -> Ours:
        """Our updates on the rows of a course, in its order, with its random numbers."""
        recipe = replace(self.cell.recipe, max_steps=updates, gradient_accumulation_steps=accumulation)
        cell = replace(self.cell, recipe=recipe)
        if "biases_by_name" in self.known:
            cell = replace(cell, method=with_biases_undecayed(cell.method))
        prepared = prepare(cell, self.rows, self.device, codec=self.codec, model=self.ours())
        trainer = with_known_divisors(prepared, self.known)
        trainer.model.train()
        groups, ours = self.groups(course, accumulation), Ours()
        names = [name for name, p in trainer.stepped.items() if p.requires_grad]
        self.codec.random = iter(course.random)
        loss, gradients = trainer.accumulated(groups[0], names)
        ours.loss, ours.norm = float(loss), float(nn.utils.get_total_norm([g.float() for g in gradients]))
        self.codec.random = iter(course.random)
        ours.losses = [float(trainer.update(group)) for group in groups]
        trainer.part()
        ours.rates = list(trainer.log.learning_rates)
        ours.weights = taken(trainer.model)
        return ours

    def groups(self, course: Course, accumulation: int) -> list[list[list[Feature]]]:
        """A course's updates as features of ours; an epoch's last update may have fewer batches."""
        per_epoch = math.ceil(len(self.features) / self.cell.recipe.per_device_train_batch_size)
        batches = [[self.features[i] for i in order if i is not None] for order in self.order(course)]
        groups: list[list[list[Feature]]] = []
        for index, batch in enumerate(batches):
            if index % per_epoch % accumulation == 0:
                groups.append([])
            groups[-1].append(batch)
        return groups

    def order(self, course: Course) -> list[list[int | None]]:
        """The numbers of the rows of each batch; None for a row that is none of the data set's."""
        places: dict[tuple[int, ...], list[int]] = {}
        for index, feature in enumerate(self.features):
            places.setdefault(tuple(self.inputs(feature)), []).append(index)
        return [[_next(places.get(ids)) for ids in real_ids(batch)] for batch in course.batches]


def _next(places: list[int] | None) -> int | None:
    """The next of several rows that are alike, in turn."""
    if not places:
        return None
    places.append(places.pop(0))
    return places[-1]


def real_ids(batch: Batch) -> list[tuple[int, ...]]:
    """The ids of each row without padding."""
    pairs = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [tuple(ids[real].tolist()) for ids, real in pairs]


def under_our_names(batch: Any) -> Batch:
    """A batch of the libraries as ours would name it."""
    named = {name: value for name, value in batch.items() if name not in SPAN_LABELS and isinstance(value, Tensor)}
    if all(name in batch for name in SPAN_LABELS):
        named["labels"] = torch.stack([batch[name] for name in SPAN_LABELS], 1)
    return named


def taken(model: Any) -> Weights:
    """A copy of what trains, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def put(model: Any, weights: Weights) -> None:
    """Give a model these weights; those that it does not have, or that do not train there, are left."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in weights and p.shape == weights[name].shape:
                p.copy_(weights[name])
