"""Turns rows into batches for a model, and a model's outputs into predictions: text or labels.

`CODECS` has a codec for each kind of problem and layout. A codec has no weights: `tunegrid.run.build` makes the model.
"""

from typing import Any

from tunegrid.codecs.base import Codec
from tunegrid.codecs.chat import ChatAnswerCodec, ChatCodec
from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.generate import EncoderDecoderCodec, SeparatedCodec
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Layout
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem

CODECS: dict[tuple[Problem, Layout | None], type[Codec]] = {
    (Problem.CLASSIFY, None): ClassifyCodec,
    (Problem.EXTRACT, None): ExtractCodec,
    (Problem.EXTRACT, Layout.CHAT): ChatAnswerCodec,
    (Problem.GENERATE, Layout.ENCODER_DECODER): EncoderDecoderCodec,
    (Problem.GENERATE, Layout.SEPARATED): SeparatedCodec,
    (Problem.GENERATE, Layout.CHAT): ChatCodec,
}


def codec_of(cell: Cell, tokenizer: Any) -> Codec:
    """The cell's codec over a tokenizer; raises InputError if there is none for its problem and its head's layout."""
    problem, layouts = cell.task.problem, [layout for kind, layout in CODECS if kind is cell.task.problem]
    layouts = [Layout.CHAT] if cell.task.messages else layouts  # nothing else tells the turns of a conversation apart
    if cell.head.layout not in layouts:
        own, *fitting = (f"Layout.{layout.name}" if layout else "no layout" for layout in (cell.head.layout, *layouts))
        raise InputError(f"{cell.id}: its head has {own}; for {problem}, a head needs {' or '.join(fitting)}")
    return CODECS[problem, cell.head.layout](cell, tokenizer)
