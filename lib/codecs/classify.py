"""Sequence classification. In: rows {label, text columns}. Out: a label and its loss a row."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.codecs.base import Batch, Codec, Feature, Prediction, on
from lib.data.sources import Row


class ClassifyCodec(Codec):
    """One text, one label. Padding is on the right; GPT-2 finds the last real token by its pad id."""

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a row, cut on the right to `max_length`."""
        room = self.recipe.max_length - len(self.before) - len(self.after)
        return [
            Feature(example=i, input_ids=[*self.before, *self.ids(self.text(row))[:room], *self.after], target=row["label"])
            for i, row in enumerate(rows)
        ]

    def synthetic(self, rng: Random) -> Feature:
        """A text of `max_length` tokens with either label."""
        words = self.tokenizer.draw(rng, self.recipe.max_length - len(self.before) - len(self.after))
        return Feature(example=0, input_ids=[*self.before, *words, *self.after], target=rng.randrange(2))

    def text(self, row: Row) -> str:
        """The recipe's columns, joined by a line break; an empty title leaves none behind."""
        return "\n".join(row[column] for column in self.recipe.text if row[column])

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Inputs (B, L) and labels (B)."""
        batch = self.inputs([feature.input_ids for feature in features])
        return {**batch, "labels": torch.tensor([feature.target for feature in features])}

    def targets(self, batch: Batch) -> int:
        """One a row."""
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed."""
        return cross_entropy(self._logits(model, batch), batch["labels"], reduction="sum")

    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """Label and loss a feature."""
        batch = on(device, self.collate(features))
        logits = self._logits(model, batch)
        losses = cross_entropy(logits, batch["labels"], reduction="none")
        return list(zip(logits.argmax(-1).tolist(), losses.tolist(), strict=True))

    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """Features and rows are one to one."""
        return [Prediction(value=label, loss=loss) for label, loss in outputs]

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        return logits.float()
