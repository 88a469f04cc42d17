"""Evaluates a trained model: one prediction per row, and scores in points."""

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
from tunegrid.grid.recipes import Precision
from tunegrid.record.record import EvaluationRecord
from tunegrid.run.device import DoesNotFit, autocast, check_memory, free_memory, resolve_precision
from tunegrid.run.meter import Progress
from tunegrid.run.metrics import Metrics, score_rows
from tunegrid.run.ranks import ALONE, Ranks

EVAL_BATCH = 64  # features; large, since no gradients are kept and sorting leaves little padding
ROOM = 2048  # tokens with padding at once on a CPU, which gains nothing by more, while the longest rows differ much in length


@dataclass(kw_only=True)
class Evaluation:
    """What a model scores on some rows: for the record, and as evidence for audits."""

    part: EvaluationRecord  # the record's: how the rows were predicted and scored
    scores: dict[str, float]  # points, 0 to 100, by metric
    examples: dict[str, list[float]]  # the points of each row
    rows: Sequence[Row]
    features: Sequence[Feature]  # what the model read of the rows
    outputs: Sequence[Any]  # what it answered,
    predictions: list[Prediction]  # and that decoded
    samples_per_second: float | None = None  # rows predicted
    generated_tokens_per_second: float | None = None  # of all rows together; None if nothing was generated


def evaluate(
    model: nn.Module,
    codec: Codec,
    rows: Sequence[Row],
    metrics: Metrics,
    device: torch.device,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Predict every row, and score the predictions against the rows: of several ranks the first one scores, for all."""
    task, features = codec.task, get_features(codec, rows, training=False)
    start = time.perf_counter()
    outputs, batch = predict(model, codec, features, device, progress, ranks)
    seconds = time.perf_counter() - start
    predictions = codec.decode(rows, features, outputs)
    result = ranks.first(lambda: score_rows(metrics, task, rows, [one.value for one in predictions]))
    losses = [prediction.loss for prediction in predictions if prediction.loss is not None]
    lengths = [len(output) for output in outputs] if codec.generates else []  # the end token included
    length_figures = {"mean": fmean(lengths), "median": float(median(lengths)), "longest": max(lengths)} if lengths else None
    part = EvaluationRecord(
        seconds=seconds,
        loss=sum(losses) / len(losses) if losses else None,
        batch=batch,
        metric_sources=result.sources,
        precision=eval_precision(codec.cell, device),
        generated_tokens=length_figures,
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
        generated_tokens_per_second=sum(map(len, outputs)) / seconds if length_figures and seconds else None,
    )


def eval_precision(cell: Cell, device: torch.device) -> Precision:
    """What a cell is scored in: as by transformers' `Trainer`, and so the study's notebooks, the precision of training."""
    # Text in fp32, where one token that rounding turns makes another text; micro backbones, too.
    return "fp32" if cell.profile.micro or cell.recipe.generation else resolve_precision(cell, device)[0]


def predict(
    model: nn.Module, codec: Codec, features: Sequence[Feature], device: torch.device, progress: Progress, ranks: Ranks = ALONE
) -> tuple[list[Any], int]:
    """An output a feature, and how many were predicted at once at the end: each time memory runs out, the batch is halved."""
    # Several ranks predict every feature once, in turn, and all have all outputs.
    lengths, outputs = get_lengths(features), dict[int, Any]()
    order = sorted(range(len(features)), key=lambda i: -lengths[i])[ranks.rank :: ranks.count]
    # Texts are generated in whole batches: each step reads all weights again.
    room = ROOM if device.type == "cpu" and not codec.generates and not codec.cell.profile.micro else sys.maxsize
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
                raise InputError(f"{codec.cell.id} does not fit: memory runs out when it predicts one row at a time")
            else:  # out here, where the error no longer keeps the failed pass alive
                free_memory(device)
                size //= 2
    shares = ranks.gather((outputs, size))
    outputs_by_feature = {i: output for share, _ in shares for i, output in share.items()}
    return [outputs_by_feature[i] for i in range(len(features))], min(size for _, size in shares)
