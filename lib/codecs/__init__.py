"""Text <-> tensors. In: rows, a tokenizer and a `Cell`. Out: batches for a model, and predictions as text or labels.

One module a kind of problem; `CODECS` finds it. A codec has no weights: the model it talks to is built in `lib.run.build`.
"""

from typing import Any

from lib.codecs.base import Codec
from lib.codecs.classify import ClassifyCodec
from lib.codecs.extract import ExtractCodec
from lib.codecs.generate import EncoderDecoderCodec, SeparatedCodec
from lib.grid.backbones import Layout
from lib.grid.cells import Cell
from lib.grid.tasks import Problem

CODECS: dict[tuple[Problem, Layout | None], type[Codec]] = {
    (Problem.CLASSIFY, None): ClassifyCodec,
    (Problem.EXTRACT, None): ExtractCodec,
    (Problem.GENERATE, Layout.ENCODER_DECODER): EncoderDecoderCodec,
    (Problem.GENERATE, Layout.SEPARATED): SeparatedCodec,
}


def codec_of(cell: Cell, tokenizer: Any) -> Codec:
    """The cell's codec over a tokenizer."""
    return CODECS[cell.task.problem, cell.head.layout](cell, tokenizer)
