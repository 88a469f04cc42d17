"""Prepares a cell's training: whatever trains a cell gets its trainer here, with model, codec and features in it."""

from collections.abc import Callable, Sequence

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

    Args:
        cell: what is trained, and how.
        rows: to train on; None: random tokens of full length, as where there is no checkpoint.
        device: where.
        codec: None: the cell's own.
        model: None: the cell's own.
        meter: measures the training.
        ranks: the processes that share it.
        after_update: is called with the trainer after each update.
    """
    codec = codec or codec_of(cell, load_tokenizer(cell))
    if rows is None:
        from tunegrid.run.footprint import synthetic_features  # which no other training needs

        features: Sequence[Feature] = synthetic_features(cell, codec)
    else:
        features = features_of(codec, rows, training=True)
    model = build(cell, codec.tokenizer, device) if model is None else model
    return Trainer(cell, model, codec, features, meter or Meter(device=device), ranks, after_update)
