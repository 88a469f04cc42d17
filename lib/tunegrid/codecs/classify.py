"""The codec of sequence classification: rows with one or two texts give one label each."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tunegrid.codecs.base import Batch, Codec, Feature, Prediction, integers, move_batch
from tunegrid.data.sources import Row, stitch


class ClassifyCodec(Codec):
    """One label for one text, or for a pair of texts: `before` text `between` second text `after`.

    Padding is on the right; decoders such as GPT-2 find the last real token by its pad id.
    """

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a row, cut to `max_length`; of two texts the longer one is cut first."""
        firsts = self.to_ids([self.text(row) for row in rows])
        seconds = self.to_ids([stitch(row, self.task.text_pair) for row in rows]) if self.task.text_pair else [None] * len(rows)
        triples = zip(firsts, seconds, rows, strict=True)
        return [self._feature(i, first, second, row[self.task.target]) for i, (first, second, row) in enumerate(triples)]

    def _feature(self, example: int, first: Sequence[int], second: Sequence[int] | None, label: int) -> Feature:
        """Of two texts, `extra` is where the second begins."""
        if second is None:
            return Feature(example=example, input_ids=self.fit(first), target=label)
        first_count, second_count = longest_first(len(first), len(second), self.room)
        start = [*self.before, *first[:first_count], *self.between]
        return Feature(example=example, input_ids=[*start, *second[:second_count], *self.after], target=label, extra=len(start))

    @property
    def room(self) -> int:
        """Tokens of text that fit; two texts have a separator between them."""
        return super().room - (len(self.between) if self.task.text_pair else 0)

    def draw_feature(self, rng: Random) -> Feature:
        """`max_length` tokens with any label; of two texts, both are equally long."""
        words = self.tokenizer.draw(rng, self.room)
        label = rng.randrange(len(self.task.labels))
        if self.task.text_pair:
            return self._feature(0, words[: self.room // 2], words[self.room // 2 :], label)
        return self._feature(0, words, None, label)

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Inputs (B, L) and labels (B)."""
        segments = [feature.extra for feature in features] if self.task.text_pair else None
        batch = self.inputs([feature.input_ids for feature in features], segments=segments)
        return {**batch, "labels": integers([feature.target for feature in features])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the labels, summed over rows."""
        return self.criterion(self._logits(model, batch), batch["labels"])

    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """Label, loss and logits a feature."""
        batch = move_batch(device, self.collate(features))
        logits = self._logits(model, batch)
        losses = cross_entropy(logits, batch["labels"], reduction="none")
        return list(zip(logits.argmax(-1).tolist(), losses.tolist(), logits.tolist(), strict=True))

    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """Features and rows are one to one."""
        return [Prediction(value=label, loss=loss) for label, loss, _ in outputs]

    def scores(self, output: Any) -> list[float]:
        """The logits."""
        return list(output[2])

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """The label is the row's."""
        return bool(int(label) == row[self.task.target])

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, labels)."""
        logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        return logits.float()


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept, as `truncation="longest_first"` of tokenizers keeps them.

    The longer text is cut down to the shorter one's length, then both are cut alike; of an odd room, the longer text, or
    else the second one, has the larger half.
    """
    short, long = sorted((first, second))
    if short + long > room:
        short, long = (short, room - short) if room - short >= short else (room // 2, room - room // 2)
    return (short, long) if first <= second else (long, short)
