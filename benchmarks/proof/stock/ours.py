"""Our side of the comparison: the cell's own codec and model, adjusted for known differences.

If a difference in `known.py` changes results, this module or `stages` makes both sides agree.
Stages after a known difference are therefore compared as strictly as stages before it.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from benchmarks.proof.stock.libraries import END_BIAS
from tunegrid.codecs.base import IGNORED, Feature
from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.generate import EncoderDecoderCodec, SeparatedCodec
from tunegrid.data.sources import Row
from tunegrid.grid.cells import Cell
from tunegrid.run.prepare import make_codec


class Extract(ExtractCodec):
    """The codec for answer spans."""

    known: Set[str]

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        """With `no_separator`, puts nothing between two texts, as GPT-2's tokenizer does."""
        super().__init__(cell, tokenizer)
        if "no_separator" in self.known:
            self.between = []

    def encode(self, rows: Sequence[Row], *, training: bool) -> list[Feature]:
        """Returns the features of the rows.

        With `answerless_rows`, keeps training rows whose answer is in no window.
        """
        if "answerless_rows" in self.known:
            training = False
        return super().encode(rows, training=training)

    def _window_starts(self, length: int, room: int) -> list[int]:
        """Returns the start of each window.

        With `short_last_window`, the last window begins a full step after the one before it, even
        if the text then ends before the window does.
        """
        starts = super()._window_starts(length, room)
        if "short_last_window" not in self.known or len(starts) == 1:
            return starts
        step = max(1, room - (self.recipe.doc_stride or 0))
        if len(starts) > 2:
            step = starts[1] - starts[0]
        last = length - room + step
        return [start for start in range(0, length, step) if start == 0 or start < last]

    def _logits(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns start and end scores.

        With `padding_answers`, padding may be chosen as the answer. With `segments_lost`, the model
        gets no token types and reads question and passage as one text.
        """
        inputs = dict(batch)
        if "segments_lost" in self.known:
            inputs.pop("token_type_ids", None)
        if "padding_answers" not in self.known:
            return super()._logits(model, inputs)
        inputs.pop("labels", None)
        output = model(**inputs)
        return output.start_logits.float(), output.end_logits.float()


class Ending:
    """A mixin that makes a codec's end token more likely in generation."""

    def generate(self, *args: Any) -> Any:
        """Generates with the same bias as the libraries' side."""
        return super().generate(*args, sequence_bias={(self.end_id,): END_BIAS})


class Pairs(Ending, EncoderDecoderCodec):
    """The codec that keeps source and target in two sequences."""

    known: Set[str]

    def answers(self, rows: Sequence[Row]) -> list[list[int]]:
        """Returns the target tokens of each row.

        With `labels_begin_with_cls`, each target begins with [CLS], which BERT's tokenizer adds.
        """
        if "labels_begin_with_cls" not in self.known:
            return super().answers(rows)
        room = self.max_target_length - 2
        targets = self.to_ids([self.target_text(row) for row in rows])
        return [[self.start_id, *tokens[:room], self.end_id] for tokens in targets]


class Separated(Ending, SeparatedCodec):
    """The codec that keeps source and target in one sequence."""

    known: Set[str]

    def collate(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """Returns a batch of whole sequences with labels.

        With `prompt_counts`, prompt tokens are labels, too. With `end_is_padding`, end tokens are
        not labels, because they are the padding token.
        """
        batch = super().collate(features)
        if "prompt_counts" in self.known:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        if "end_is_padding" in self.known:
            is_end = batch["input_ids"] == self.pad_id
            batch["labels"] = batch["labels"].masked_fill(is_end, IGNORED)
        return batch

    def targets(self, batch: Mapping[str, Tensor]) -> int:
        """Returns the number of target tokens in the batch.

        With `first_label_counts`, the first token counts, though nothing predicts it.
        """
        first = 0 if "first_label_counts" in self.known else 1
        return int((batch["labels"][:, first:] != IGNORED).sum())


KINDS: Mapping[type, Any] = {
    ExtractCodec: Extract,
    EncoderDecoderCodec: Pairs,
    SeparatedCodec: Separated,
    ClassifyCodec: ClassifyCodec,
}


def knowing_codec(cell: Cell, tokenizer: Any, known: Set[str]) -> Any:
    """Our codec for the cell, adjusted for the `known` differences."""
    kind = KINDS[type(make_codec(cell, tokenizer))]
    return type(kind.__name__, (kind,), {"known": known})(cell, tokenizer)


def put(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """Copies weights into the model's parameters of the same name and shape; returns the model."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in weights and p.shape == weights[name].shape:
                p.copy_(weights[name])
    return model


def round_adapters(model: Any) -> None:
    """Rounds the adapters of 4-bit layers to bf16, for `adapter_rounded_when_loaded`."""
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if not isinstance(module.get_base_layer(), bnb.nn.Linear4bit):
            continue
        for name, parameter in module.named_parameters():
            if not name.startswith("base_layer."):
                parameter.data = parameter.data.to(torch.bfloat16)
