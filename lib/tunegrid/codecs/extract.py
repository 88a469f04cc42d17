"""The codec of extractive question answering: each row gives the text of its best span.

A feature is: question, separator, a window of the context. Shapes: B windows, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tunegrid.codecs.base import Batch, Codec, Feature, Prediction, integers, move_batch, same_alphanumeric
from tunegrid.data.sources import Row, answer_span, answer_texts, context
from tunegrid.errors import InputError

MAX_ANSWER_TOKENS = 30  # the run_squad.py default of Devlin et al. 2018
MAX_QUESTION_TOKENS = 64  # likewise
SYNTHETIC_QUESTION_TOKENS = 14  # about what SQuAD's questions have


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which piece of the context a feature holds."""

    shift: int  # the place of the context's first token in the feature
    offsets: list[tuple[int, int]]  # each token's first and last character in the context; the last one is exclusive


class ExtractCodec(Codec):
    """Windows over long contexts; the annotated answer start decides where the answer is."""

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """One feature a window. In training, a row whose answer is in no window teaches nothing and is left out."""
        questions = self.to_ids([self.text(row) for row in rows])
        contexts = self.encode_texts([context(self.task, row) for row in rows], return_offsets_mapping=True)
        features = []
        for example, row in enumerate(rows):
            question = [*self.before, *questions[example][:MAX_QUESTION_TOKENS], *self.between]
            room = self.recipe.max_length - len(question) - len(self.after)
            if room < 1:
                raise InputError(
                    f"{self.cell.id}: a question of {len(question)} tokens leaves no room for its context in max_length "
                    f"{self.recipe.max_length}; give the recipe a larger one"
                )
            tokens, offsets, windows = contexts["input_ids"][example], contexts["offset_mapping"][example], []
            for start in self._window_starts(len(tokens), room):
                window = Window(shift=len(question), offsets=offsets[start : start + room])
                ids = [*question, *tokens[start : start + room], *self.after]
                target = token_span(answer_span(self.task, row), window)
                windows.append(Feature(example=example, input_ids=ids, target=target, extra=window))
            if not training or any(feature.target != (0, 0) for feature in windows):
                features += windows
        return features

    def _window_starts(self, length: int, room: int) -> list[int]:
        """Where windows begin: neighbours share `doc_stride` tokens, and the last window reaches the end."""
        if self.recipe.doc_stride is None or length <= room:
            return [0]
        step = max(1, room - self.recipe.doc_stride)
        return [*range(0, length - room, step), length - room]

    def draw_feature(self, rng: Random) -> Feature:
        """A question and a window that fill `max_length`; one token of the window is the answer."""
        question = [*self.before, *self.tokenizer.draw(rng, SYNTHETIC_QUESTION_TOKENS), *self.between]
        words = self.tokenizer.draw(rng, self.recipe.max_length - len(question) - len(self.after))
        window = Window(shift=len(question), offsets=[(i, i + 1) for i in range(len(words))])
        answer = window.shift + rng.randrange(len(words))
        return Feature(example=0, input_ids=[*question, *words, *self.after], target=(answer, answer), extra=window)

    def restore_feature(self, values: dict[str, Any]) -> Feature:
        """A window of its fields as JSON has them."""
        offsets = [(start, end) for start, end in values["extra"]["offsets"]]
        window = Window(shift=values["extra"]["shift"], offsets=offsets)
        return Feature(**values | {"target": tuple(values["target"]), "extra": window})

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Inputs (B, L) and labels (B, 2): the answer's first and last token."""
        batch = self.inputs([f.input_ids for f in features], segments=[f.extra.shift for f in features])
        return {**batch, "labels": integers([feature.target for feature in features])}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the cross-entropies of the answers' first and last tokens, each summed over windows."""
        pairs = zip(self._logits(model, batch), batch["labels"].unbind(1), strict=True)
        return torch.stack([self.criterion(logits, labels) for logits, labels in pairs]).mean()

    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """(score, first token, last token) of each window's best span, and the context's start and end scores (2, tokens)."""
        starts, ends = self._logits(model, move_batch(device, self.collate(features)))
        spans = [best_span(start, end, feature.extra) for start, end, feature in zip(starts, ends, features, strict=True)]
        scores = zip(torch.stack((starts, ends), 1).cpu(), features, strict=True)
        return [(*span, crop(pair, feature.extra).clone()) for span, (pair, feature) in zip(spans, scores, strict=True)]

    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """The text of the best span over all of a row's own windows."""
        best: dict[int, tuple[float, str]] = {}
        for feature, (score, first, last, *_) in zip(features, outputs, strict=True):
            if feature.example not in best or score > best[feature.example][0]:
                begin, end = (feature.extra.offsets[token - feature.extra.shift] for token in (first, last))
                text = context(self.task, rows[feature.example])[begin[0] : end[1]].strip()
                best[feature.example] = score, text  # the window itself is large
        return [Prediction(value=best[example][1]) for example in range(len(rows))]

    def scores(self, output: Any) -> list[float]:
        """The best span's."""
        return [output[0]]

    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """The labelled tokens say the row's first answer; (0, 0) labels a window without it, and no other."""
        first, last = label.tolist()
        if (first, last) == (0, 0):
            return not self.holds_answer(row, feature)
        tokens = self.tokenizer.decode(feature.input_ids[first : last + 1])
        return same_alphanumeric(tokens, answer_texts(self.task, row)[0], self.tokenizer.unk_token)

    def holds_answer(self, row: Row, feature: Feature) -> bool:
        """Whether a window holds all characters of its row's answer, by the annotation."""
        offsets, (begin, end) = feature.extra.offsets, answer_span(self.task, row)
        return bool(offsets) and offsets[0][0] <= begin and end <= offsets[-1][1]

    def window(self, row: Row, feature: Feature) -> tuple[str, str] | None:
        """The context's tokens in this feature, decoded, and the characters they came from; None for an empty context."""
        shift, offsets = feature.extra.shift, feature.extra.offsets
        if not offsets:
            return None
        tokens = self.tokenizer.decode(feature.input_ids[shift : shift + len(offsets)])
        return tokens, context(self.task, row)[offsets[0][0] : offsets[-1][1]]

    def labelled_tokens(self, feature: Feature) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Characters of the answer's first and last token; None for a window without the answer."""
        if feature.target == (0, 0):
            return None
        first, last = (feature.extra.offsets[position - feature.extra.shift] for position in feature.target)
        return first, last

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end scores (B, L); padding can be neither."""
        output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        padding = batch["attention_mask"] == 0
        starts, ends = (scores.float().masked_fill(padding, -1e9) for scores in (output.start_logits, output.end_logits))
        return starts, ends


def token_span(characters: tuple[int, int], window: Window) -> tuple[int, int]:
    """Places of the first and last token of these characters, or (0, 0) where the window does not hold all of them."""
    begin, end = characters
    tokens = [i for i, (start, stop) in enumerate(window.offsets) if start < end and stop > begin]
    if not tokens or window.offsets[tokens[0]][0] > begin or window.offsets[tokens[-1]][1] < end:
        return 0, 0
    return window.shift + tokens[0], window.shift + tokens[-1]


def best_span(starts: Tensor, ends: Tensor, window: Window) -> tuple[float, int, int]:
    """The highest sum of scores (L) of a first and a last token, and their places in the feature.

    The last is not before the first and within the length limit; both lie in the context: the question holds no answer.
    """
    fill = torch.finfo(ends.dtype).min  # which makes no NaN of a score of infinity
    score, position = (crop(starts, window).unsqueeze(1) + legal_ends(crop(ends, window), fill)).flatten().max(0)
    first, offset = divmod(int(position), MAX_ANSWER_TOKENS)
    return float(score), window.shift + first, window.shift + first + offset


def crop(scores: Tensor, window: Window) -> Tensor:
    """Of scores (..., L), those of the context's tokens."""
    return scores[..., window.shift : window.shift + len(window.offsets)]


def legal_ends(ends: Tensor, behind: float) -> Tensor:
    """Of scores (..., L) those (..., L, 30) of the last tokens that each first token allows; `behind` if none is left."""
    return pad(ends, (0, MAX_ANSWER_TOKENS - 1), value=behind).unfold(-1, MAX_ANSWER_TOKENS, 1)
