"""What every codec offers, and what they share. In: rows. Out: `Feature`s, batches, predictions.

Shapes: B rows in a batch, L tokens in its longest row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from lib.codecs.cache import cached_features
from lib.data.sources import Row
from lib.grid.cells import Cell

IGNORED = -100  # a target that no loss counts (torch's ignore_index)
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One model input.

    Attributes:
        example: number of the row it was made from; a long passage gives several.
        input_ids: tokens, special tokens included.
        target: what the loss is taken on; the kind of problem says what that is.
        extra: what decoding needs, as the codec likes.
    """

    example: int
    input_ids: list[int]
    target: Any
    extra: Any = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row's output: `value` is a label or a text; `loss` in nats, where evaluation computes one."""

    value: Any
    loss: float | None = None


class Codec(ABC):
    """Text to tensors and back, for one cell."""

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        """A codec for `cell` over `tokenizer`."""
        self.cell = cell
        self.recipe = cell.recipe
        self.tokenizer = tokenizer
        wrap = cell.backbone.wrap
        self.before, self.between, self.after = (
            [getattr(tokenizer, f"{name}_id")] if name else [] for name in (wrap.before, wrap.between, wrap.after)
        )
        # GPT-2 has no padding token; padding is masked out, so that any token will do.
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    @abstractmethod
    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """Features in the order of the rows; for training only those that have something to learn."""

    @abstractmethod
    def synthetic(self, rng: Random) -> Feature:
        """A feature of random ids, as long as the recipe lets any be; needs a `SyntheticTokenizer`."""

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> Batch:
        """One padded training batch, with "labels"."""

    @abstractmethod
    def targets(self, batch: Batch) -> int:
        """How many items the batch's loss is summed over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss summed over the batch's targets, in nats."""

    @abstractmethod
    def predict(self, model: nn.Module, features: Sequence[Feature], device: torch.device) -> list[Any]:
        """The model's output for each feature; what that is is between `predict` and `decode`."""

    @abstractmethod
    def decode(self, rows: Sequence[Row], features: Sequence[Feature], outputs: Sequence[Any]) -> list[Prediction]:
        """One prediction a row."""

    def features(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """What `encode` gives, by way of the profile's cache where it has one."""
        folder = self.cell.profile.feature_cache
        return cached_features(self, rows, folder, training=training) if folder else self.encode(rows, training=training)

    def restored(self, target: Any, extra: Any) -> dict[str, Any]:
        """A feature's `target` and `extra` after a way through storage, which knows lists and mappings only."""
        return {"target": target, "extra": extra}

    def ids(self, text: str) -> list[int]:
        """Tokens of a text without special tokens."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens

    def inputs(self, rows: Sequence[Sequence[int]], segments: Sequence[int] | None = None, *, left: bool = False) -> Batch:
        """Padded ids (B, L) with their mask; `segments` are the lengths of the first texts, for models that tell two apart."""
        longest = max(map(len, rows))
        gaps = [longest - len(row) for row in rows]
        batch = {
            "input_ids": torch.tensor(
                [
                    [self.pad_id] * gap + [*row] if left else [*row] + [self.pad_id] * gap
                    for row, gap in zip(rows, gaps, strict=True)
                ]
            ),
            "attention_mask": torch.tensor(
                [
                    [0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap
                    for row, gap in zip(rows, gaps, strict=True)
                ]
            ),
        }
        if segments is not None and self.cell.backbone.segments:
            second = torch.arange(longest) >= torch.tensor(segments).unsqueeze(1)
            batch["token_type_ids"] = (second & batch["attention_mask"].bool()).long()
        return batch


def on(device: torch.device, batch: Batch) -> Batch:
    """The batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def real_tokens(batch: Batch) -> int:
    """Tokens that are not padding: inputs, and targets where they are a sequence of their own."""
    return int(batch["attention_mask"].sum()) + int(batch.get("decoder_attention_mask", torch.zeros(0)).sum())


def all_tokens(batch: Batch) -> int:
    """Tokens with padding, counted as `real_tokens` counts."""
    return batch["attention_mask"].numel() + batch.get("decoder_attention_mask", torch.zeros(0)).numel()
