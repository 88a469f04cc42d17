"""What every codec offers, and what codecs share: from rows to `Feature`s, batches and predictions.

Shapes: B rows in a batch, L tokens in its longest row.
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from tunegrid.data.sources import Row, stitch
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Backbone
from tunegrid.grid.cells import Cell

IGNORED = -100  # a label that no loss counts (torch's ignore_index)
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One model input."""

    example: int  # number of the row it was made from; a long passage gives several features
    input_ids: list[int]  # special tokens included
    target: Any  # what the loss is taken on: a label, a span, or tokens
    extra: Any = field(default=None, repr=False)  # what else the codec needs to collate and decode


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row's output: `value` is a label or a text; `loss` in nats, None if the codec computes none."""

    value: Any
    loss: float | None = None


class Codec(ABC):
    """Text to tensors and back, for one cell.

    Attributes:
        generates: outputs are generated token ids.
        before, after: tokens that stand around every input, however much of the text is cut.
        between: tokens between two texts.
    """

    generates: ClassVar[bool] = False

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        """A codec for `cell` over `tokenizer`; raises InputError if the two, or the recipe's lengths, do not fit."""
        self.cell = cell
        self.task = cell.task
        self.recipe = cell.recipe
        self.tokenizer = tokenizer
        self.criterion = summed_cross_entropy  # of what the loss is taken on; a teacher puts another in its place
        self.between = self.special(cell.backbone.wrap.between)
        self.before, self.after = self.affixes()
        # GPT-2 has no padding token; padding is masked out, so any token will do.
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if self.room < 1:
            raise InputError(
                f"{self.cell.id}: max_length {self.recipe.max_length} leaves no room for the text; give the recipe a larger one"
            )

    def special(self, name: str | None) -> list[int]:
        """The special token of this name, as "sep_token"; none for None. Raises InputError if the tokenizer lacks it."""
        if name is None:
            return []
        token = getattr(self.tokenizer, f"{name}_id", None)
        if token is None:
            raise InputError(f"backbone {self.cell.backbone.id!r} puts {name} around its texts, but its tokenizer has none")
        return [token]

    def affixes(self) -> tuple[list[int], list[int]]:
        """`before` and `after`: by default the backbone's special tokens around a text."""
        wrap = self.cell.backbone.wrap
        return self.special(wrap.before), self.special(wrap.after)

    @property
    def room(self) -> int:
        """How many tokens of text fit into `max_length`."""
        return self.recipe.max_length - len(self.before) - len(self.after)

    def text(self, row: Row) -> str:
        """What a row is read by: the recipe's prefix and the cell's columns."""
        return self.recipe.prefix + stitch(row, self.cell.text)

    def fit(self, tokens: Sequence[int]) -> list[int]:
        """An input: the tokens, cut on the right to the room there is, between `before` and `after`."""
        return [*self.before, *tokens[: self.room], *self.after]

    def frame(self) -> tuple[list[int], list[int]]:
        """Tokens that every input begins and ends with, the recipe's prefix included."""
        prefix = self.recipe.prefix.strip()
        return [*self.before, *(self.ids(prefix) if prefix else [])], self.after

    @abstractmethod
    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """Features in the order of the rows; for training, only those that have something to learn.

        A row's features do not depend on other rows: many rows are encoded in blocks.
        """

    @abstractmethod
    def draw_feature(self, rng: Random) -> Feature:
        """A feature of random ids, as long as the recipe lets one be; needs a `SyntheticTokenizer`."""

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> Batch:
        """One padded training batch, with "labels"."""

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on a device, with what may help `loss` there; `loss` is the same without."""
        return move_batch(device, batch)

    def targets(self, batch: Batch) -> int:
        """How many items the batch's loss is summed over: one a row, or a window."""
        return len(batch["labels"])

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, summed over the batch's targets."""

    @abstractmethod
    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """The model's output for each feature, as `decode` takes it."""

    @abstractmethod
    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """One prediction a row."""

    @abstractmethod
    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """Whether a collated label is the row's target: nothing of the prompt, nothing of the padding, no other row's."""

    def scores(self, output: Any) -> list[float]:
        """The model's scores that an output was chosen by; none if the output does not keep them."""
        return []

    def restore_feature(self, values: dict[str, Any]) -> Feature:
        """A feature of its fields as JSON has them, which knows neither tuples nor classes."""
        return Feature(**values)

    def ids(self, text: str) -> list[int]:
        """Tokens of a text without special tokens."""
        return self.to_ids([text])[0]

    def to_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text without special tokens."""
        return self.encode_texts(texts)["input_ids"]

    def encode_texts(self, texts: Sequence[str], **options: bool) -> Mapping[str, list[Any]]:
        """The tokenizer's encoding of all texts at once, which takes a fraction of the time, without special tokens."""
        if not texts:  # tokenizers refuse an empty list
            return {"input_ids": [], "offset_mapping": []}
        return dict(self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **options))

    def inputs(self, rows: Sequence[Sequence[int]], segments: Sequence[int] | None = None, *, left: bool = False) -> Batch:
        """Padded ids (B, L) with their mask; `segments` are the lengths of the first texts, for models that tell two apart."""
        ids, mask = pad(rows, self.pad_id, left=left), pad([[1] * len(row) for row in rows], 0, left=left)
        batch = {"input_ids": ids, "attention_mask": mask}
        if segments is not None and self.cell.backbone.segments:
            batch["token_type_ids"] = (torch.arange(ids.shape[1]) >= integers(segments).unsqueeze(1)).long() * mask
        return batch


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """In nats, of fp32 scores (N, options) and the right ones (N), or IGNORED."""
    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def integers(values: Sequence[Any]) -> Tensor:
    """Whole numbers, or lists of equally many of them, as a tensor; `torch.tensor` takes them one by one."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Rows of whole numbers (B, L), filled up with `value` on the right, or on the left."""
    tensors = [integers(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left" if left else "right")


def move_batch(device: torch.device, batch: Batch) -> Batch:
    """The batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def token_counts(batch: Batch) -> tuple[int, int]:
    """Tokens without and with padding: of inputs, and of targets where they are a sequence of their own."""
    masks = [batch[name] for name in ("attention_mask", "decoder_attention_mask") if name in batch]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)


def alphanumeric(text: str) -> str:
    """A text's ASCII letters and digits, lower case and without accents: what every tokenizer keeps."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def same_alphanumeric(tokens: str, text: str, unknown: str | None) -> bool:
    """Whether decoded tokens hold a text. They may reach beyond it, and an `unknown` token may stand for any part of it."""
    return alphanumeric(text) in alphanumeric(tokens) or bool(unknown and unknown in tokens)


class SyntheticTokenizer:
    """The ids of a backbone's true tokenizer, special ones by name, but no words: `Codec.draw_feature` needs none."""

    pad_token_id = eos_token_id = cls_token_id = sep_token_id = None

    def __init__(self, backbone: Backbone) -> None:
        """The true vocabulary's size and special tokens."""
        vars(self).update(backbone.special_tokens)
        self._size = backbone.vocabulary
        self._special = set(backbone.special_tokens.values())
        self._added: list[str] = []

    def __len__(self) -> int:
        """How many ids there are, added ones included."""
        return self._size + len(self._added)

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> None:
        """Give each the next free id."""
        self._added += [token for token in tokens if token not in self._added]

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of an added token."""
        return self._size + self._added.index(token)

    def draw(self, rng: Random, count: int) -> list[int]:
        """So many random ids, special ones left out."""
        ids = list[int]()
        while len(ids) < count:
            token = rng.randrange(self._size)
            if token not in self._special:
                ids.append(token)
        return ids
