"""Prepares a cell for training: builds its model, codec, features and trainer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
import transformers as hf
from torch import nn

from tunegrid.codecs.base import Codec, Feature
from tunegrid.codecs.chat import ChatAnswerCodec, ChatCodec
from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.features import get_features
from tunegrid.codecs.generate import EncoderDecoderCodec, SeparatedCodec
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Layout, checkpoint_source
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Problem
from tunegrid.run.build import build, from_hub_or_folder, load_tokenizer
from tunegrid.run.meter import Meter
from tunegrid.run.ranks import ALONE, Ranks
from tunegrid.run.train import Trainer

UNCUT = 10**9  # tokens; longer than any row
CODECS: dict[tuple[Problem, Layout | None], type[Codec]] = {
    (Problem.CLASSIFY, None): ClassifyCodec,
    (Problem.EXTRACT, None): ExtractCodec,
    (Problem.EXTRACT, Layout.CHAT): ChatAnswerCodec,
    (Problem.GENERATE, Layout.ENCODER_DECODER): EncoderDecoderCodec,
    (Problem.GENERATE, Layout.SEPARATED): SeparatedCodec,
    (Problem.GENERATE, Layout.CHAT): ChatCodec,
}


def make_codec(cell: Cell, tokenizer: Any) -> Codec:
    """Builds the cell's codec.

    Raises InputError if no codec for the task's problem supports the head's layout.
    """
    problem = cell.task.problem
    layouts = [layout for kind, layout in CODECS if kind is problem]
    if cell.task.messages:  # only chat codecs read the turns of a conversation
        layouts = [Layout.CHAT]
    if cell.head.layout not in layouts:
        name = layout_name(cell.head.layout)
        names = " or ".join(map(layout_name, layouts))
        raise InputError(f"{cell.id}: its head has {name}; for {problem}, a head needs {names}")
    return CODECS[problem, cell.head.layout](cell, tokenizer)


def layout_name(layout: Layout | None) -> str:
    """The name of a head's layout in messages."""
    return f"Layout.{layout.name}" if layout else "no layout"


def prepare(
    cell: Cell,
    rows: Sequence[Row] | None,
    device: torch.device,
    *,
    codec: Codec | None = None,
    model: nn.Module | None = None,
    meter: Meter | None = None,
    ranks: Ranks = ALONE,
    after_update: Callable[[Trainer], None] = lambda trainer: None,
) -> Trainer:
    """Builds the cell's trainer; without rows (as for footprints), features are random tokens."""
    codec = codec or make_codec(cell, load_tokenizer(cell))
    features = (
        synthetic_features(cell, codec)
        if rows is None
        else get_features(codec, rows, training=True)
    )
    if model is None:
        model = build(cell, codec.tokenizer, device)
    return Trainer(cell, model, codec, features, meter or Meter(device=device), ranks, after_update)


def length_doubts(cell: Cell, rows: Sequence[Row]) -> Iterator[str]:
    """Yields warnings if rows exceed `max_length`, or if it exceeds the backbone's positions."""
    limit = cell.recipe.max_length
    name = cell.backbone.id
    lengths = row_lengths(cell, rows, limit)
    if cell.recipe.doc_stride is None:  # with a stride, other windows read the rest of a row
        pairs = zip(row_lengths(cell, rows, UNCUT), lengths, strict=True)
        cut = sum(whole > length for whole, length in pairs)
        if cut:
            cure = 'quick={"max_length": N}' if cell.profile.micro else "max_length=N"
            fault = f"{name} reads {limit} tokens of a row: {cut} of {len(rows)} rows are longer"
            yield f"{fault} and are cut; {cure} reads more"
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    config = from_hub_or_folder(hf.AutoConfig, source, pin)
    positions = getattr(config, "max_position_embeddings", None)  # T5 has none
    if positions is not None and limit > positions:
        beyond = sum(length > positions for length in lengths)
        fault = f"max_length {limit} is beyond the {positions} positions of {name}"
        yield f"{fault}, and so are {beyond} of {len(rows)} rows; give at most {positions}"


def row_lengths(cell: Cell, rows: Sequence[Row], limit: int) -> list[int]:
    """Counts the tokens of each row's input, cut to `limit`."""
    recipe = replace(cell.recipe, max_length=limit, doc_stride=None)
    codec = make_codec(replace(cell, recipe=recipe), load_tokenizer(cell))
    return [len(feature.input_ids) for feature in codec.encode(rows, training=False)]


def synthetic_features(cell: Cell, codec: Codec) -> Sequence[Feature]:
    """Random features of full length, enough for the recipe's `max_steps` updates."""
    rng = Random(cell.profile.seed)
    recipe = cell.recipe
    update_size = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    count = recipe.max_steps * update_size
    return [replace(codec.draw_feature(rng), example=i) for i in range(count)]
