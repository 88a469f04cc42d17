"""Turns rows into batches for a model, and a model's outputs into predictions: text or labels.

`CODECS` has a codec for each kind of problem and layout. A codec has no weights: `tunegrid.run.build` makes the model.
"""

from typing import Any

from tunegrid.codecs.base import Codec
from tunegrid.codecs.chat import ChatAnswerCodec, ChatCodec, ConversationCodec
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


# Of tasks whose rows are conversations.
CONVERSATIONS: dict[tuple[Problem, Layout | None], type[Codec]] = {(Problem.GENERATE, Layout.CHAT): ConversationCodec}


def codec_of(cell: Cell, tokenizer: Any) -> Codec:
    """The cell's codec over a tokenizer; raises InputError where there is none for its problem and its head's layout."""
    problem, layout = cell.task.problem, cell.head.layout
    codecs = CONVERSATIONS if cell.task.messages else CODECS
    if (problem, layout) not in codecs:
        fitting = [_named(known) for kind, known in codecs if kind is problem]
        raise InputError(f"{cell.id}: its head has {_named(layout)}; for {problem}, a head needs {' or '.join(fitting)}")
    return codecs[problem, layout](cell, tokenizer)


def _named(layout: Layout | None) -> str:
    return f"Layout.{layout.name}" if layout else "no layout"
