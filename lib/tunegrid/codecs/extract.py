"""The codec for extractive question answering, which answers each row with its best span.

A feature is a question, a separator, and a window of the context. Shapes: B windows, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tunegrid.codecs.base import (
    Batch,
    Codec,
    Feature,
    Prediction,
    integers,
    move_batch,
    same_alphanumeric,
    without_labels,
)
from tunegrid.data.sources import Row, answer_span, answer_texts, context
from tunegrid.errors import InputError

MAX_ANSWER_TOKENS = 30  # default of run_squad.py by Devlin et al. 2018
MAX_QUESTION_TOKENS = 64  # likewise
SYNTHETIC_QUESTION_TOKENS = 14  # about the length of SQuAD's questions


@dataclass(frozen=True, kw_only=True)
class Window:
    """The piece of the context that a feature contains."""

    shift: int  # position of the window's first token in the feature
    offsets: list[tuple[int, int]]  # each token's characters in the context, as [start, end)


class ExtractCodec(Codec):
    """Splits long contexts into windows; the annotated start locates the answer."""

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature per window; training leaves out rows whose answer is in no window.

        Raises InputError if a question leaves no room for its context.
        """
        questions = self.to_ids([self.text(row) for row in rows])
        texts = [context(self.task, row) for row in rows]
        contexts = self.encode_texts(texts, return_offsets_mapping=True)
        features = []
        for example, row in enumerate(rows):
            question = [*self.before, *questions[example][:MAX_QUESTION_TOKENS], *self.between]
            room = self.recipe.max_length - len(question) - len(self.after)
            if room < 1:
                raise InputError(
                    f"{self.cell.id}: a question of {len(question)} tokens leaves no room "
                    f"for its context in max_length {self.recipe.max_length}; "
                    "give the recipe a larger one"
                )
            tokens = contexts["input_ids"][example]
            offsets = contexts["offset_mapping"][example]
            windows = []
            for start in self._window_starts(len(tokens), room):
                window = Window(shift=len(question), offsets=offsets[start : start + room])
                ids = [*question, *tokens[start : start + room], *self.after]
                target = token_span(answer_span(self.task, row), window)
                feature = Feature(example=example, input_ids=ids, target=target, extra=window)
                windows.append(feature)
            if not training or any(feature.target != (0, 0) for feature in windows):
                features += windows
        return features

    def _window_starts(self, length: int, room: int) -> list[int]:
        """Starts of windows; neighbours share `doc_stride` tokens, but the last two may share more.

        Without `doc_stride`, only the first window is read.
        """
        if self.recipe.doc_stride is None or length <= room:
            return [0]
        step = max(1, room - self.recipe.doc_stride)
        return [*range(0, length - room, step), length - room]

    def draw_feature(self, rng: Random) -> Feature:
        """A question and a window that fill `max_length`; one token in the window is the answer."""
        question = self.tokenizer.draw(rng, SYNTHETIC_QUESTION_TOKENS)
        question = [*self.before, *question, *self.between]
        words = self.tokenizer.draw(rng, self.recipe.max_length - len(question) - len(self.after))
        window = Window(shift=len(question), offsets=[(i, i + 1) for i in range(len(words))])
        answer = window.shift + rng.randrange(len(words))
        ids = [*question, *words, *self.after]
        return Feature(example=0, input_ids=ids, target=(answer, answer), extra=window)

    def restore_feature(self, values: dict[str, Any]) -> Feature:
        """Rebuilds a window's feature from its fields in JSON."""
        offsets = [(start, end) for start, end in values["extra"]["offsets"]]
        window = Window(shift=values["extra"]["shift"], offsets=offsets)
        return Feature(**values | {"target": tuple(values["target"]), "extra": window})

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Inputs (B, L) and labels (B, 2): the positions of the answer's first and last token."""
        shifts = [feature.extra.shift for feature in features]
        batch = self.inputs([feature.input_ids for feature in features], segments=shifts)
        return {**batch, "labels": integers([feature.target for feature in features])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the start and end cross-entropies, each summed over windows."""
        pairs = zip(self._logits(model, batch), batch["labels"].unbind(1), strict=True)
        return torch.stack([self.criterion(logits, labels) for logits, labels in pairs]).mean()

    def predict(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        device: torch.device,
    ) -> list[Any]:
        """Each window's best span (score, first and last token) and logits (2, context tokens)."""
        starts, ends = self._logits(model, move_batch(device, self.collate(features)))
        pairs = torch.stack((starts, ends), 1).cpu()
        outputs = []
        for start, end, pair, feature in zip(starts, ends, pairs, features, strict=True):
            span = best_span(start, end, feature.extra)
            outputs.append((*span, crop(pair, feature.extra).clone()))
        return outputs

    def decode(
        self,
        rows: Sequence[Row],
        features: Sequence[Feature],
        outputs: Sequence[Any],
    ) -> list[Prediction]:
        """The text of the best span among all of a row's windows."""
        best: dict[int, tuple[float, str]] = {}
        for feature, (score, first, last, *_) in zip(features, outputs, strict=True):
            if feature.example not in best or score > best[feature.example][0]:
                window = feature.extra
                begin, _ = window.offsets[first - window.shift]
                _, end = window.offsets[last - window.shift]
                text = context(self.task, rows[feature.example])[begin:end].strip()
                best[feature.example] = score, text  # does not keep the window, which is large
        return [Prediction(value=best[example][1]) for example in range(len(rows))]

    def scores(self, output: Any) -> list[float]:
        """The best span's score."""
        return [output[0]]

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """Checks whether the label is the first annotated answer, or (0, 0) if it is elsewhere."""
        first, last = label.tolist()
        if (first, last) == (0, 0):
            return not self.holds_answer(row, feature)
        tokens = self.tokenizer.decode(feature.input_ids[first : last + 1])
        return same_alphanumeric(tokens, answer_texts(self.task, row)[0], self.tokenizer.unk_token)

    def holds_answer(self, row: Row, feature: Feature) -> bool:
        """Checks whether a window contains all of its row's first annotated answer."""
        offsets = feature.extra.offsets
        begin, end = answer_span(self.task, row)
        return bool(offsets) and offsets[0][0] <= begin and end <= offsets[-1][1]

    def window(self, row: Row, feature: Feature) -> tuple[str, str] | None:
        """The window's decoded tokens and its original text; None if the window is empty."""
        shift = feature.extra.shift
        offsets = feature.extra.offsets
        if not offsets:
            return None
        tokens = self.tokenizer.decode(feature.input_ids[shift : shift + len(offsets)])
        return tokens, context(self.task, row)[offsets[0][0] : offsets[-1][1]]

    def labelled_tokens(self, feature: Feature) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Character spans of the labelled answer's first and last token; None without a label."""
        if feature.target == (0, 0):
            return None
        first, last = feature.target
        window = feature.extra
        return window.offsets[first - window.shift], window.offsets[last - window.shift]

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end scores (B, L); padding can be neither a start nor an end."""
        output = model(**without_labels(batch))
        padding = batch["attention_mask"] == 0
        starts = output.start_logits.float().masked_fill(padding, -1e9)
        ends = output.end_logits.float().masked_fill(padding, -1e9)
        return starts, ends


def token_span(characters: tuple[int, int], window: Window) -> tuple[int, int]:
    """Positions of a span's first and last token; (0, 0) unless the window holds the whole span."""
    begin, end = characters
    offsets = window.offsets
    tokens = [i for i, (start, stop) in enumerate(offsets) if start < end and stop > begin]
    if not tokens or offsets[tokens[0]][0] > begin or offsets[tokens[-1]][1] < end:
        return 0, 0
    return window.shift + tokens[0], window.shift + tokens[-1]


def best_span(starts: Tensor, ends: Tensor, window: Window) -> tuple[float, int, int]:
    """The span with the highest start + end score: its score, first position and last position.

    The span lies within the context, has at most `MAX_ANSWER_TOKENS` tokens, and does not end
    before it starts.
    """
    fill = torch.finfo(ends.dtype).min  # unlike -inf, turns no infinite score into NaN
    sums = crop(starts, window).unsqueeze(1) + legal_ends(crop(ends, window), fill)
    score, position = sums.flatten().max(0)
    first, offset = divmod(int(position), MAX_ANSWER_TOKENS)
    return float(score), window.shift + first, window.shift + first + offset


def crop(scores: Tensor, window: Window) -> Tensor:
    """The part of scores (..., L) that belongs to the window's tokens."""
    return scores[..., window.shift : window.shift + len(window.offsets)]


def legal_ends(ends: Tensor, behind: float) -> Tensor:
    """Scores (..., L, 30) of the ends allowed for each start; ends past the text get `behind`."""
    padded = pad(ends, (0, MAX_ANSWER_TOKENS - 1), value=behind)
    return padded.unfold(-1, MAX_ANSWER_TOKENS, 1)
