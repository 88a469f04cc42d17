"""Extractive question answering. In: SQuAD rows. Out: the best span's text a row.

A feature is: question, separator, a window of the context. Shapes: B windows, L tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.codecs.base import Batch, Codec, Feature, Prediction, on
from lib.data.sources import Row

MAX_ANSWER_TOKENS = 30  # the run_squad.py default of Devlin et al. 2018
MAX_QUESTION_TOKENS = 64  # likewise
SYNTHETIC_QUESTION_TOKENS = 14  # about what SQuAD's questions have


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where a feature's context stands: its first token's place in the feature, and each token's character span."""

    shift: int
    offsets: list[tuple[int, int]]


class ExtractCodec(Codec):
    """Windows over long contexts; the annotated answer start decides where the answer is."""

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a window. In training, rows whose answer no window holds have nothing to learn and are left out."""
        features = []
        for example, row in enumerate(rows):
            windows = list(self._windows(example, row))
            if not training or any(feature.target != (0, 0) for feature in windows):
                features += windows
        return features

    def _windows(self, example: int, row: Row) -> Iterator[Feature]:
        question = [*self.before, *self.ids(row["question"])[:MAX_QUESTION_TOKENS], *self.between]
        encoding = self.tokenizer(row["context"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens, offsets = encoding["input_ids"], encoding["offset_mapping"]
        room = self.recipe.max_length - len(question) - len(self.after)
        for start in self._starts(len(tokens), room):
            window = Window(shift=len(question), offsets=offsets[start : start + room])
            yield Feature(
                example=example,
                input_ids=[*question, *tokens[start : start + room], *self.after],
                target=answer_span(row, window),
                extra=window,
            )

    def _starts(self, length: int, room: int) -> list[int]:
        """Where windows begin: neighbours share `doc_stride` tokens, and the last one reaches the end."""
        if self.recipe.doc_stride is None or length <= room:
            return [0]
        step = max(1, room - self.recipe.doc_stride)
        return [*range(0, length - room, step), length - room]

    def synthetic(self, rng: Random) -> Feature:
        """A question, and a window that fills `max_length`, with a one-token answer somewhere in it."""
        question = [*self.before, *self.tokenizer.draw(rng, SYNTHETIC_QUESTION_TOKENS), *self.between]
        words = self.tokenizer.draw(rng, self.recipe.max_length - len(question) - len(self.after))
        window = Window(shift=len(question), offsets=[(i, i + 1) for i in range(len(words))])
        answer = window.shift + rng.randrange(len(words))
        return Feature(example=0, input_ids=[*question, *words, *self.after], target=(answer, answer), extra=window)

    def restored(self, target: Any, extra: Any) -> dict[str, Any]:
        """The answer's two places, and the window."""
        window = Window(shift=extra["shift"], offsets=[(start, end) for start, end in extra["offsets"]])
        return {"target": tuple(target), "extra": window}

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Inputs (B, L) and labels (B, 2): the answer's first and last token."""
        batch = self.inputs([f.input_ids for f in features], segments=[f.extra.shift for f in features])
        return {**batch, "labels": torch.tensor([feature.target for feature in features])}

    def targets(self, batch: Batch) -> int:
        """One a window."""
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean of start and end cross-entropy, summed over windows."""
        starts, ends = self._logits(model, batch)
        labels = batch["labels"]
        return (cross_entropy(starts, labels[:, 0], reduction="sum") + cross_entropy(ends, labels[:, 1], reduction="sum")) / 2

    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """(score, first token, last token) of each window's best span."""
        starts, ends = self._logits(model, on(device, self.collate(features)))
        return [best_span(start, end, feature.extra) for start, end, feature in zip(starts, ends, features, strict=True)]

    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """The text of the best span over all of a row's own windows."""
        best: dict[int, tuple[float, int, int, Window]] = {}
        for feature, (score, first, last) in zip(features, outputs, strict=True):
            if feature.example not in best or score > best[feature.example][0]:
                best[feature.example] = (score, first, last, feature.extra)
        return [Prediction(value=span_text(row, *best[example][1:])) for example, row in enumerate(rows)]

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end scores (B, L); padding can be neither."""
        output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        padding = batch["attention_mask"] == 0
        starts, ends = (scores.float().masked_fill(padding, -1e9) for scores in (output.start_logits, output.end_logits))
        return starts, ends


def answer_span(row: Row, window: Window) -> tuple[int, int]:
    """First and last token of the annotated answer, or (0, 0) where the window does not hold all of it.

    Answers repeat in the context: the annotated start counts, not the first occurrence (SQuAD v1.1).
    """
    begin = row["answers"]["answer_start"][0]
    end = begin + len(row["answers"]["text"][0])
    inside = [i for i, (start, stop) in enumerate(window.offsets) if start < end and stop > begin]
    if not inside or window.offsets[inside[0]][0] > begin or window.offsets[inside[-1]][1] < end:
        return 0, 0
    return window.shift + inside[0], window.shift + inside[-1]


def best_span(starts: Tensor, ends: Tensor, window: Window) -> tuple[float, int, int]:
    """The best-scored pair of all with first <= last, within the length limit and within the context.

    Args:
        starts: scores (L) of being the first token.
        ends: scores (L) of being the last.
        window: where the context stands; the question cannot hold the answer.

    Returns:
        The sum of both scores, and the two tokens' places in the feature.
    """
    span = slice(window.shift, window.shift + len(window.offsets))
    pairs = starts[span].unsqueeze(1) + ends[span].unsqueeze(0)
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(MAX_ANSWER_TOKENS - 1)
    score, place = pairs.masked_fill(~allowed, -torch.inf).flatten().max(0)
    first, last = divmod(int(place), len(window.offsets))
    return float(score), window.shift + first, window.shift + last


def span_text(row: Row, first: int, last: int, window: Window) -> str:
    """The characters from the first to the last token."""
    text: str = row["context"][window.offsets[first - window.shift][0] : window.offsets[last - window.shift][1]]
    return text.strip()
