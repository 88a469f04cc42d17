"""Our side: the cell's own codec and loop, which reckon with known differences where they are told to.

Each id of `tunegrid.run.stock.known` that concerns arithmetic stands here once, where ours then does as the library does. So
what comes after a known difference is held as tightly as what comes before it.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from tunegrid.codecs import codec_of
from tunegrid.codecs.base import IGNORED, Batch, Codec, Feature
from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.generate import EncoderDecoderCodec, SeparatedCodec
from tunegrid.data.sources import Row
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Method, ParameterGroups
from tunegrid.run.device import set_random_states
from tunegrid.run.train import Trainer

Known = Set[str]


class Replayed(Codec):
    """A codec whose forward passes of training draw the random numbers that the stock path's drew.

    Attributes:
        known: ids of the differences that are reckoned with.
        random: states of the generators, one for each pass to come.
    """

    known: Known = frozenset()
    random: Iterator[Mapping[str, Tensor]] = iter(())

    def placed(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on a device, with the generators where the stock path's stood."""
        if (state := next(self.random, None)) is not None:
            set_random_states(device, dict(state))
        return super().placed(batch, device)


class Classify(Replayed, ClassifyCodec):
    """Classes, as ours."""


class Extract(Replayed, ExtractCodec):
    """Spans."""

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        """The same; `no_separator`: GPT-2's tokenizer puts nothing between two texts."""
        super().__init__(cell, tokenizer)
        if "no_separator" in self.known:
            self.between = []

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """The same; `answerless_rows`: rows whose answer is in no window train, too."""
        return super().encode(rows, training=training and "answerless_rows" not in self.known)

    def _starts(self, length: int, room: int) -> list[int]:
        """The same; `short_last_window`: the last window begins where its turn is, and may be short."""
        starts = super()._starts(length, room)
        if "short_last_window" not in self.known or len(starts) == 1:
            return starts
        step = starts[1] - starts[0] if len(starts) > 2 else max(1, room - (self.recipe.doc_stride or 0))
        return [start for start in range(0, length, step) if start == 0 or start - step + room < length]

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The same; `padding_answers`: padding may be an answer; `segments_lost`: the model is not told two texts apart."""
        lost = ("token_type_ids",) if "segments_lost" in self.known else ()
        read = {name: tensor for name, tensor in batch.items() if name not in lost}
        if "padding_answers" not in self.known:
            return super()._logits(model, read)
        output = model(**{name: tensor for name, tensor in read.items() if name != "labels"})
        return output.start_logits.float(), output.end_logits.float()


class Pairs(Replayed, EncoderDecoderCodec):
    """Source and target apart."""

    def answers(self, rows: Sequence[Row]) -> list[list[int]]:
        """The same; `labels_begin_with_cls`: BERT's tokenizer frames a target as it does a source."""
        if "labels_begin_with_cls" not in self.known:
            return super().answers(rows)
        return [
            [self.start_id, *tokens[: self.max_target_length - 2], self.end_id]
            for tokens in self.ids_of([self.target_text(row) for row in rows])
        ]


class Separated(Replayed, SeparatedCodec):
    """Source and target in one sequence."""

    def collate(self, features: Sequence[Feature]) -> Batch:
        """The same; `prompt_counts`: every token is a label; `end_is_padding`: but those that are padding's, too."""
        batch = super().collate(features)
        if "prompt_counts" in self.known:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        if "end_is_padding" in self.known:
            batch["labels"] = batch["labels"].masked_fill(batch["input_ids"] == self.pad_id, IGNORED)
        return batch

    def targets(self, batch: Batch) -> int:
        """One for each token that is predicted; `first_label_counts`: and one for the first, which is not."""
        first = 0 if "first_label_counts" in self.known else 1
        return int((batch["labels"][:, first:] != IGNORED).sum())


KINDS: Mapping[type[Codec], type[Replayed]] = {
    ClassifyCodec: Classify,
    ExtractCodec: Extract,
    EncoderDecoderCodec: Pairs,
    SeparatedCodec: Separated,
}


def oracle_codec(cell: Cell, tokenizer: Any, known: Known) -> Replayed:
    """Our codec of the cell, which reckons with known differences."""
    kind = KINDS[type(codec_of(cell, tokenizer))]
    codec: Replayed = type(kind.__name__, (kind,), {"known": frozenset(known)})(cell, tokenizer)
    return codec


def with_known_divisors(trainer: Trainer, known: Known) -> Trainer:
    """The trainer; `batches_add_up`, `batches_weigh_alike`: of the batches' own means, it takes the sum or the mean."""
    own = trainer.divisors

    def divisors(batches: Sequence[Batch]) -> Sequence[int | float | Tensor]:
        counts = [trainer.codec.targets(batch) for batch in batches]
        if "batches_add_up" in known:
            return counts
        if "batches_weigh_alike" in known:
            return [count * len(batches) for count in counts]
        return own(batches)

    trainer.divisors = divisors  # type: ignore[method-assign]
    return trainer


def with_biases_undecayed(method: Method) -> Method:
    """The method; `biases_by_name`: what is called a bias does not decay, T5's biases of position among it."""

    def parameter_groups(self: Method, model: nn.Module, cell: Cell) -> ParameterGroups:
        groups = type(method).parameter_groups(method, model, cell)
        named = {id(p) for name, p in model.named_parameters() if "bias" in name}
        decaying = [p for p in groups[0]["params"] if id(p) not in named]
        undecayed = [p for p in groups[0]["params"] if id(p) in named]
        return [
            {**groups[0], "params": decaying},
            {**groups[1], "params": [*groups[1]["params"], *undecayed]},
            *groups[2:],
        ]

    kind = type(type(method).__name__, (type(method),), {"parameter_groups": parameter_groups})
    changed: Method = kind(**{name: value for name, value in vars(method).items()})
    return changed
