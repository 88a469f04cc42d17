"""The codec for sequence classification: each row has one or two texts and gets one label."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tunegrid.codecs.base import (
    Batch,
    Codec,
    Feature,
    Prediction,
    integers,
    move_batch,
    without_labels,
)
from tunegrid.data.sources import Row, stitch


class ClassifyCodec(Codec):
    """Labels one text or a pair, encoded as `before`, text, `between`, second text, `after`.

    Padding is on the right; decoders such as GPT-2 find the last real token by the pad id.
    """

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature per row, cut to `max_length`; of two texts, the longer one is cut first."""
        firsts = self.to_ids([self.text(row) for row in rows])
        seconds: Sequence[list[int] | None] = [None] * len(rows)
        if self.task.text_pair:
            seconds = self.to_ids([stitch(row, self.task.text_pair) for row in rows])
        features: list[Feature] = []
        for first, second, row in zip(firsts, seconds, rows, strict=True):
            features.append(self._feature(len(features), first, second, row[self.task.target]))
        return features

    def _feature(
        self,
        example: int,
        first: Sequence[int],
        second: Sequence[int] | None,
        label: int,
    ) -> Feature:
        """A feature of one or two texts; `extra` is the position where the second begins."""
        if second is None:
            return Feature(example=example, input_ids=self.fit(first), target=label)
        first_count, second_count = longest_first(len(first), len(second), self.room)
        start = [*self.before, *first[:first_count], *self.between]
        ids = [*start, *second[:second_count], *self.after]
        return Feature(example=example, input_ids=ids, target=label, extra=len(start))

    @property
    def room(self) -> int:
        """The number of text tokens that fit alongside the special tokens.

        For pairs, the separator takes room too.
        """
        room = super().room
        if self.task.text_pair:
            room -= len(self.between)
        return room

    def draw_feature(self, rng: Random) -> Feature:
        """A random feature of `max_length` tokens with a random label; a pair is split in half."""
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

    def predict(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        device: torch.device,
    ) -> list[Any]:
        """The predicted label, the loss and the logits of each feature."""
        batch = move_batch(device, self.collate(features))
        logits = self._logits(model, batch)
        losses = cross_entropy(logits, batch["labels"], reduction="none")
        return list(zip(logits.argmax(-1).tolist(), losses.tolist(), logits.tolist(), strict=True))

    def decode(
        self,
        rows: Sequence[Row],
        features: Sequence[Feature],
        outputs: Sequence[Any],
    ) -> list[Prediction]:
        """One prediction per feature, since each row has exactly one feature."""
        return [Prediction(value=label, loss=loss) for label, loss, _ in outputs]

    def scores(self, output: Any) -> list[float]:
        """The logits in an output."""
        return list(output[2])

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """Checks whether the label equals the row's label."""
        return bool(int(label) == row[self.task.target])

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, labels), in fp32."""
        logits: Tensor = model(**without_labels(batch)).logits
        return logits.float()


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths to which tokenizers' `truncation="longest_first"` cuts two texts.

    First, the longer text is cut, down to the length of the shorter text if need be; then both are
    cut equally. An odd token goes to the longer text, or to the second if they are equally long.
    """
    short, long = sorted((first, second))
    if short + long > room:
        short = min(short, room // 2)
        long = room - short
    return (short, long) if first <= second else (long, short)
