"""Our side: the cell's own codec and model, which reckon with known differences.

Each id of `known.py` that concerns arithmetic stands here or in `stages` once, where ours then does as the
library does. So what comes after a known difference is held as tightly as what comes before it.
"""

import bitsandbytes as bnb
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from benchmarks.proof.stock.libraries import END_BIAS
from tunegrid.codecs.base import IGNORED
from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.generate import EncoderDecoderCodec, SeparatedCodec
from tunegrid.run.prepare import make_codec


class Extract(ExtractCodec):
    """Spans."""

    def __init__(self, cell, tokenizer):
        """`no_separator`: GPT-2's tokenizer puts nothing between two texts."""
        super().__init__(cell, tokenizer)
        self.between = [] if "no_separator" in self.known else self.between

    def encode(self, rows, *, training):
        """`answerless_rows`: rows whose answer is in no window train, too."""
        return super().encode(rows, training=training and "answerless_rows" not in self.known)

    def _window_starts(self, length, room):
        """`short_last_window`: the last window begins where its turn is, and may be short."""
        starts = super()._window_starts(length, room)
        if "short_last_window" not in self.known or len(starts) == 1:
            return starts
        step = starts[1] - starts[0] if len(starts) > 2 else max(1, room - (self.recipe.doc_stride or 0))
        return [start for start in range(0, length, step) if start == 0 or start - step + room < length]

    def _logits(self, model, batch):
        """`padding_answers`: padding may be an answer; `segments_lost`: the model is not told two texts apart."""
        lost_inputs = ("token_type_ids",) if "segments_lost" in self.known else ()
        batch = {name: tensor for name, tensor in batch.items() if name not in lost_inputs}
        if "padding_answers" not in self.known:
            return super()._logits(model, batch)
        output = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        return output.start_logits.float(), output.end_logits.float()


class Ending:
    """Texts whose end is likelier."""

    def generate(self, *args):
        """With the libraries' bias."""
        return super().generate(*args, sequence_bias={(self.end_id,): END_BIAS})


class Pairs(Ending, EncoderDecoderCodec):
    """Source and target apart."""

    def answers(self, rows):
        """`labels_begin_with_cls`: BERT's tokenizer frames a target as it does a source."""
        if "labels_begin_with_cls" not in self.known:
            return super().answers(rows)
        targets = self.to_ids([self.target_text(row) for row in rows])
        return [[self.start_id, *tokens[: self.max_target_length - 2], self.end_id] for tokens in targets]


class Separated(Ending, SeparatedCodec):
    """Source and target in one sequence."""

    def collate(self, features):
        """`prompt_counts`: every token is a label; `end_is_padding`: but those that are padding's, too."""
        batch = super().collate(features)
        if "prompt_counts" in self.known:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        if "end_is_padding" in self.known:
            batch["labels"] = batch["labels"].masked_fill(batch["input_ids"] == self.pad_id, IGNORED)
        return batch

    def targets(self, batch):
        """`first_label_counts`: one for the first token, too, which is not predicted."""
        first = 0 if "first_label_counts" in self.known else 1
        return int((batch["labels"][:, first:] != IGNORED).sum())


KINDS = {ExtractCodec: Extract, EncoderDecoderCodec: Pairs, SeparatedCodec: Separated, ClassifyCodec: ClassifyCodec}


def knowing_codec(cell, tokenizer, known):
    """Our codec of the cell, which reckons with known differences."""
    kind = KINDS[type(make_codec(cell, tokenizer))]
    return type(kind.__name__, (kind,), {"known": known})(cell, tokenizer)


def put(model, weights):
    """Give a model these weights; those that it does not have, or that do not train there, are left."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in weights and p.shape == weights[name].shape:
                p.copy_(weights[name])
    return model


def round_adapters(model):
    """`adapter_rounded_when_loaded`: round to bf16 what PEFT added to packed layers."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), bnb.nn.Linear4bit):
            for name, parameter in module.named_parameters():
                if not name.startswith("base_layer."):
                    parameter.data = parameter.data.to(torch.bfloat16)
