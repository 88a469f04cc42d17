"""Trains a cell by one setting after another and scores each on validation rows, and on test rows where it is asked to.

What all trainings of a cell share, as tokenised rows, is made once. The course is the suite's own (`Trainer`), with pauses in
which validation rows are scored: they change no loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tunegrid.codecs import codec_of
from tunegrid.codecs.base import Codec, Feature
from tunegrid.codecs.features import features_of
from tunegrid.data.sources import Row
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import Cell
from tunegrid.machine import keep_freed_memory
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.device import free_memory
from tunegrid.run.evaluation import evaluate
from tunegrid.run.meter import Meter
from tunegrid.run.metrics import Metrics
from tunegrid.run.progress import Progress
from tunegrid.run.training import Trainer


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the trainings of a cell share.

    Attributes:
        features: what they train on, in tokens.
        validation: the rows that a setting is chosen by.
        device: where they train.
    """

    tokenizer: Any
    codec: Codec
    features: Sequence[Feature]
    validation: Sequence[Row]
    device: torch.device

    def trainer(self, cell: Cell) -> Trainer:
        """A training of this cell about to happen; its rows and codec are those of all."""
        free_memory(self.device)  # of the training before
        model = build(cell, self.tokenizer, self.device)
        return Trainer(cell, model, self.codec, self.features, Meter(device=self.device))

    def looks(self, trainer: Trainer, progress: Progress, count: int) -> Iterator[float]:
        """Train in so many parts; after each, the main score on validation rows. Less where a loss is not a number."""

        def validate() -> tuple[float, Sequence[Row]]:
            return self._score(trainer, self.validation, progress), self.validation

        for part in range(1, count + 1):
            pause = None if part == count else max(1, trainer.total * part // count)
            trainer.run(progress, validate, first_updates=pause)
            if trainer.log.stopped:
                return
            yield validate()[0]

    def test_score(self, trainer: Trainer, progress: Progress) -> float:
        """The main score on test rows, which are read the first time that somebody asks."""
        return self._score(trainer, self._test, progress)

    def _score(self, trainer: Trainer, rows: Sequence[Row], progress: Progress) -> float:
        evaluation = evaluate(trainer.model, self.codec, rows, Metrics(), self.device, progress)
        return evaluation.scores[self.codec.task.main_score]

    @cached_property
    def _test(self) -> Sequence[Row]:
        return load_splits(self.codec.task, self.codec.cell.profile).test


def bench_of(cell: Cell, device: torch.device) -> Bench:
    """The bench of a cell. Test rows are loaded only so that no training row repeats one, and are dropped."""
    keep_freed_memory()
    splits, tokenizer = load_splits(cell.task, cell.profile), load_tokenizer(cell)
    codec = codec_of(cell, tokenizer)
    features = features_of(codec, splits.train, training=True)
    return Bench(tokenizer=tokenizer, codec=codec, features=features, validation=splits.validation, device=device)
