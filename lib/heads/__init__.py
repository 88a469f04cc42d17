"""Text <-> tensors. In: rows, a tokenizer and a `Cell`. Out: batches for a model, and predictions as text or labels.

One module a kind of problem; `HEADS` finds it. A head has no weights: the model it talks to is built in `lib.run.build`.
"""

from typing import Any

from lib.grid.backbones import Layout
from lib.grid.cells import Cell
from lib.grid.tasks import Problem
from lib.heads.base import Head
from lib.heads.classify import ClassifyHead
from lib.heads.extract import ExtractHead
from lib.heads.generate import EncoderDecoderHead, SeparatedHead

HEADS: dict[tuple[Problem, Layout | None], type[Head]] = {
    (Problem.CLASSIFY, None): ClassifyHead,
    (Problem.EXTRACT, None): ExtractHead,
    (Problem.GENERATE, Layout.ENCODER_DECODER): EncoderDecoderHead,
    (Problem.GENERATE, Layout.SEPARATED): SeparatedHead,
}


def head_of(cell: Cell, tokenizer: Any) -> Head:
    """The cell's head over a tokenizer."""
    return HEADS[cell.task.problem, cell.head.layout](cell, tokenizer)
