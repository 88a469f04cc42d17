"""Evaluates a model: predicts each row, and scores the predictions in points."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from tunegrid.codecs.base import Codec, Feature, Prediction
from tunegrid.codecs.features import get_features, get_lengths
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import EVAL_BATCH, Precision
from tunegrid.record.record import EvaluationRecord
from tunegrid.run.device import DoesNotFit, autocast, check_memory, free_memory, resolve_precision
from tunegrid.run.meter import Progress
from tunegrid.run.metrics import Metrics, score_rows
from tunegrid.run.ranks import ALONE, Ranks

# Maximum number of tokens per batch on a CPU, including padding. Larger batches gain nothing there,
# and would need much padding, since the longest rows differ in length.
ROOM = 2048


@dataclass(kw_only=True)
class Evaluation:
    """A model's scores on some rows, with the features, outputs and predictions behind them."""

    part: EvaluationRecord  # the record's part: how the rows were predicted and scored
    scores: dict[str, float]  # points, 0 to 100, by metric
    examples: dict[str, list[float]]  # points of each row, by metric
    rows: Sequence[Row]
    features: Sequence[Feature]  # the rows as the model read them
    outputs: Sequence[Any]  # one model output per feature
    predictions: list[Prediction]  # decoded from the outputs
    samples_per_second: float | None = None  # rows predicted per second
    generated_tokens_per_second: float | None = None  # None if nothing was generated


def evaluate(
    model: nn.Module,
    codec: Codec,
    rows: Sequence[Row],
    metrics: Metrics,
    device: torch.device,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Predicts and scores every row; the first rank computes the scores for all ranks."""
    features = get_features(codec, rows, training=False)
    start = time.perf_counter()
    outputs, batch = predict(model, codec, features, device, progress, ranks)
    seconds = time.perf_counter() - start
    predictions = codec.decode(rows, features, outputs)
    values = [prediction.value for prediction in predictions]
    result = ranks.first(lambda: score_rows(metrics, codec.task, rows, values))
    losses = [prediction.loss for prediction in predictions if prediction.loss is not None]
    generated_tokens = None
    tokens_per_second = None
    if codec.generates and outputs:
        lengths = [len(output) for output in outputs]  # including the end token
        generated_tokens = {
            "mean": fmean(lengths),
            "median": float(median(lengths)),
            "longest": max(lengths),
        }
        tokens_per_second = sum(lengths) / seconds if seconds else None
    part = EvaluationRecord(
        seconds=seconds,
        loss=sum(losses) / len(losses) if losses else None,
        batch=batch,
        metric_sources=result.sources,
        precision=eval_precision(codec.cell, device),
        generated_tokens=generated_tokens,
    )
    return Evaluation(
        part=part,
        scores=result.scores,
        examples=result.examples,
        rows=rows,
        features=features,
        outputs=outputs,
        predictions=predictions,
        samples_per_second=len(rows) / seconds if seconds else None,
        generated_tokens_per_second=tokens_per_second,
    )


def eval_precision(cell: Cell, device: torch.device) -> Precision:
    """The precision for evaluation: the training precision, as in transformers' `Trainer`, or fp32.

    Text is generated in fp32, since one token changed by rounding can change all later ones. Micro
    backbones are also evaluated in fp32.
    """
    if cell.profile.micro or cell.recipe.generation:
        return "fp32"
    return resolve_precision(cell, device)[0]


def predict(
    model: nn.Module,
    codec: Codec,
    features: Sequence[Feature],
    device: torch.device,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> tuple[list[Any], int]:
    """Predicts one output per feature, and halves the batch size each time memory runs out.

    Also returns the final batch size. Several ranks share the features; each returns all outputs
    and the smallest batch size. Raises InputError if memory runs out for a single row.
    """
    lengths = get_lengths(features)
    outputs: dict[int, Any] = {}
    order = sorted(range(len(features)), key=lambda i: -lengths[i])[ranks.rank :: ranks.count]
    room = sys.maxsize
    # Generation uses full batches, because each step reads all weights again.
    if device.type == "cpu" and not codec.generates and not codec.cell.profile.micro:
        room = ROOM
    model.eval()
    size = EVAL_BATCH
    with torch.inference_mode(), autocast(eval_precision(codec.cell, device), device):
        while len(outputs) < len(order):
            start = len(outputs)
            chunk = order[start : start + min(size, room // lengths[order[start]] or 1)]
            try:
                with check_memory():
                    answers = codec.predict(model, [features[i] for i in chunk], device)
            except DoesNotFit:
                answers = None
            if answers is not None:
                outputs.update(zip(chunk, answers, strict=True))
                progress("evaluate", len(outputs), len(order), "")
            elif size == 1:
                cause = "memory runs out when it predicts one row at a time"
                raise InputError(f"{codec.cell.id} does not fit: {cause}")
            else:  # outside `try`, so that the error no longer keeps the failed pass alive
                free_memory(device)
                size //= 2
    all_outputs: dict[int, Any] = {}
    for rank_outputs, rank_size in ranks.gather((outputs, size)):
        all_outputs |= rank_outputs
        size = min(size, rank_size)
    return [all_outputs[i] for i in range(len(features))], size
