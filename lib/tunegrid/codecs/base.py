"""The base class of codecs, which turn rows into batches, and model outputs into predictions.

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

IGNORED = -100  # label that losses skip (torch's ignore_index)
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One model input."""

    example: int  # the row's index; a long passage gives several features
    input_ids: list[int]  # special tokens included
    target: Any  # the loss's target: a label, a span, or tokens
    extra: Any = field(default=None, repr=False)  # the codec's own data for collating and decoding


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for a row: `value` is a label or a text; `loss` is in nats, or None."""

    value: Any
    loss: float | None = None


class Codec(ABC):
    """Turns text into tensors and back, for one cell.

    Attributes:
        generates: whether outputs are generated token ids.
        before, after: tokens around every input; only the text between them is truncated.
        between: tokens between two texts.
    """

    generates: ClassVar[bool] = False

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        """Raises InputError if `max_length` is too small or the tokenizer lacks a special token."""
        self.cell = cell
        self.task = cell.task
        self.recipe = cell.recipe
        self.tokenizer = tokenizer
        self.criterion = summed_cross_entropy  # distillation replaces it
        self.between = self.special(cell.backbone.wrap.between)
        self.before, self.after = self.affixes()
        self.pad_id = tokenizer.pad_token_id
        if self.pad_id is None:  # as in GPT-2; padding is masked out, so any token will do
            self.pad_id = tokenizer.eos_token_id
        if self.room < 1:
            fault = f"max_length {self.recipe.max_length} leaves no room for the text"
            raise InputError(f"{self.cell.id}: {fault}; give the recipe a larger one")

    def special(self, name: str | None) -> list[int]:
        """The id of a token such as "sep_token", in a list; an empty list if `name` is None.

        Raises InputError if the tokenizer lacks the token.
        """
        if name is None:
            return []
        token = getattr(self.tokenizer, f"{name}_id", None)
        if token is None:
            fault = f"backbone {self.cell.backbone.id!r} puts {name} around its texts"
            raise InputError(f"{fault}, but its tokenizer has none")
        return [token]

    def affixes(self) -> tuple[list[int], list[int]]:
        """`before` and `after`, by default the backbone's special tokens around a text."""
        wrap = self.cell.backbone.wrap
        return self.special(wrap.before), self.special(wrap.after)

    @property
    def room(self) -> int:
        """The number of text tokens that fit into `max_length`."""
        return self.recipe.max_length - len(self.before) - len(self.after)

    def text(self, row: Row) -> str:
        """A row's input text: the recipe's prefix, then the texts of the cell's columns."""
        return self.recipe.prefix + stitch(row, self.cell.text)

    def fit(self, tokens: Sequence[int]) -> list[int]:
        """Truncates the tokens on the right, and puts them between `before` and `after`."""
        return [*self.before, *tokens[: self.room], *self.after]

    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens that begin and end every input, including the recipe's prefix."""
        prefix = self.recipe.prefix.strip()
        prefix_ids = self.ids(prefix) if prefix else []
        return self.before + prefix_ids, self.after

    @abstractmethod
    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """Features in row order; for training, rows with nothing to learn may be left out.

        A row's features must not depend on other rows, because rows are encoded in blocks.
        """

    @abstractmethod
    def draw_feature(self, rng: Random) -> Feature:
        """A feature of random ids at full length; the tokenizer must be a `SyntheticTokenizer`."""

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collates features into one padded batch, with "labels"."""

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Moves the batch to a device; may add tensors that speed up `loss` without changing it."""
        return move_batch(device, batch)

    def targets(self, batch: Batch) -> int:
        """The number of items over which the batch's loss is summed: one per row or window."""
        return len(batch["labels"])

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, summed over the batch's targets."""

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        device: torch.device,
    ) -> list[Any]:
        """The model's output for each feature, in the form that `decode` takes."""

    @abstractmethod
    def decode(
        self,
        rows: Sequence[Row],
        features: Sequence[Feature],
        outputs: Sequence[Any],
    ) -> list[Prediction]:
        """One prediction per row."""

    @abstractmethod
    def label_is_target(self, row: Row, feature: Feature, label: Tensor) -> bool:
        """Checks whether a feature's collated labels, except ignored ones, are its row's target."""

    def scores(self, output: Any) -> list[float]:
        """The scores by which the model chose an output; empty if the output has none."""
        return []

    def restore_feature(self, values: dict[str, Any]) -> Feature:
        """Rebuilds a feature from its fields in JSON, which has neither tuples nor classes."""
        return Feature(**values)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens."""
        return self.to_ids([text])[0]

    def to_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without special tokens."""
        return self.encode_texts(texts)["input_ids"]

    def encode_texts(self, texts: Sequence[str], **options: bool) -> Mapping[str, list[Any]]:
        """Encodes all texts in one tokenizer call, for speed, without special tokens."""
        if not texts:  # tokenizers reject an empty list
            return {"input_ids": [], "offset_mapping": []}
        return dict(self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **options))

    def inputs(
        self,
        rows: Sequence[Sequence[int]],
        segments: Sequence[int] | None = None,
        *,
        left: bool = False,
    ) -> Batch:
        """Padded ids (B, L) with their attention mask.

        `segments` gives the start of each row's second text, for models with token type ids.
        """
        ids = pad(rows, self.pad_id, left=left)
        mask = pad([[1] * len(row) for row in rows], 0, left=left)
        batch = {"input_ids": ids, "attention_mask": mask}
        if segments is not None and self.cell.backbone.segments:
            is_second = torch.arange(ids.shape[1]) >= integers(segments).unsqueeze(1)
            batch["token_type_ids"] = is_second.long() * mask
        return batch


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of fp32 logits (N, classes) in nats, summed over labels (N) except IGNORED."""
    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def integers(values: Sequence[Any]) -> Tensor:
    """Builds a tensor from integers, or from lists of equal length, faster than `torch.tensor`."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Rows of integers as a tensor (B, L), padded with `value` on the right or on the left."""
    tensors = [integers(row) for row in rows]
    return pad_sequence(
        tensors,
        batch_first=True,
        padding_value=value,
        padding_side="left" if left else "right",
    )


def move_batch(device: torch.device, batch: Batch) -> Batch:
    """Moves the batch to a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def without_labels(batch: Batch) -> Batch:
    """The batch without its labels: the model's keyword arguments."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def token_counts(batch: Batch) -> tuple[int, int]:
    """Counts a batch's tokens without and with padding; decoder inputs count, too."""
    tokens = 0
    padded_tokens = 0
    for name in ("attention_mask", "decoder_attention_mask"):
        if name in batch:
            tokens += int(batch[name].sum())
            padded_tokens += batch[name].numel()
    return tokens, padded_tokens


def alphanumeric(text: str) -> str:
    """A text's ASCII letters and digits, lowercase and unaccented, which tokenizers preserve."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def same_alphanumeric(tokens: str, text: str, unknown: str | None) -> bool:
    """Checks whether decoded tokens contain a text's letters and digits, or the token `unknown`."""
    if unknown and unknown in tokens:
        return True
    return alphanumeric(text) in alphanumeric(tokens)


class SyntheticTokenizer:
    """Stands in for a backbone's tokenizer; has only its vocabulary size and special tokens."""

    pad_token_id = eos_token_id = cls_token_id = sep_token_id = None

    def __init__(self, backbone: Backbone) -> None:
        """Takes the backbone's vocabulary size and special tokens."""
        vars(self).update(backbone.special_tokens)
        self._size = backbone.vocabulary
        self._special = set(backbone.special_tokens.values())
        self._added: list[str] = []

    def __len__(self) -> int:
        """The vocabulary size, including added tokens."""
        return self._size + len(self._added)

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> None:
        """Gives each new token the next free id."""
        self._added += [token for token in tokens if token not in self._added]

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of an added token."""
        return self._size + self._added.index(token)

    def draw(self, rng: Random, count: int) -> list[int]:
        """Draws random ids, excluding those of special tokens."""
        ids = list[int]()
        while len(ids) < count:
            token = rng.randrange(self._size)
            if token not in self._special:
                ids.append(token)
        return ids
