"""Prepares a cell's training: whatever trains a cell gets its trainer here, with model, codec and features in it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import torch
from torch import nn

from tunegrid.codecs import codec_of
from tunegrid.codecs.base import Codec, Feature
from tunegrid.codecs.features import features_of
from tunegrid.data.sources import Row
from tunegrid.grid.cells import Cell
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.meter import Meter
from tunegrid.run.ranks import ALONE, Ranks
from tunegrid.run.train import Trainer


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
    """A trainer that holds all that a training of the cell needs: codec, features, model. Nothing has trained yet.

    Without rows it trains on random tokens of full length, as where there is no checkpoint.
    """
    codec = codec or codec_of(cell, load_tokenizer(cell))
    features = synthetic_features(cell, codec) if rows is None else features_of(codec, rows, training=True)
    model = build(cell, codec.tokenizer, device) if model is None else model
    return Trainer(cell, model, codec, features, meter or Meter(device=device), ranks, after_update)


def synthetic_features(cell: Cell, codec: Codec) -> Sequence[Feature]:
    """Features of full length for every update of the profile."""
    rng, recipe = Random(cell.profile.seed), cell.recipe
    count = recipe.max_steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    return [replace(codec.synthetic(rng), example=i) for i in range(count)]
