"""Evaluation. In: a trained model, its codec, rows. Out: a prediction a row, and scores in points."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lib.codecs.base import Codec, Feature, Prediction
from lib.data.sources import Row
from lib.errors import InputError
from lib.grid.tasks import Problem
from lib.run.device import out_of_memory
from lib.run.metrics import METRICS, Metrics
from lib.run.progress import Progress

EVAL_BATCH = 64  # rows; large, since no gradients are kept and sorted rows waste little on padding


@dataclass(kw_only=True)
class Evaluation:
    """What a model scores on some rows.

    Attributes:
        scores: points, 0 to 100, by metric.
        examples: points of each row, by metric.
        features, outputs: what the model saw, and what it answered before that was decoded.
        loss: mean loss in nats a row, where the codec computes one.
        seconds: of prediction alone, without encoding and scoring.
        batch: rows predicted at once at the end; fewer than `EVAL_BATCH` where memory ran out.
        sources: which implementation computed the scores.
    """

    predictions: list[Prediction]
    scores: dict[str, float]
    examples: dict[str, list[float]]
    rows: Sequence[Row]
    features: Sequence[Feature]
    outputs: Sequence[Any]
    loss: float | None
    seconds: float
    samples_per_second: float
    batch: int
    sources: dict[str, str]


def evaluate(
    model: nn.Module, codec: Codec, rows: Sequence[Row], metrics: Metrics, device: torch.device, progress: Progress
) -> Evaluation:
    """Predict every row, longest first, and score against its references."""
    features = codec.features(rows, training=False)
    began = time.perf_counter()
    outputs, batch = predict(model, codec, features, device, progress.stage("evaluate"))
    seconds = time.perf_counter() - began
    predictions = codec.decode(rows, features, outputs)
    scored = METRICS[codec.cell.task.problem](metrics, rows, [prediction.value for prediction in predictions])
    losses = [prediction.loss for prediction in predictions if prediction.loss is not None]
    return Evaluation(
        predictions=predictions,
        rows=rows,
        features=features,
        outputs=outputs,
        scores=scored.scores,
        examples=scored.examples,
        loss=sum(losses) / len(losses) if losses else None,
        seconds=seconds,
        samples_per_second=len(rows) / seconds,
        batch=batch,
        sources=metrics.sources(Problem(codec.cell.task.problem)),
    )


def predict(
    model: nn.Module, codec: Codec, features: Sequence[Feature], device: torch.device, stage: Progress
) -> tuple[list[Any], int]:
    """An output a feature, and how many were predicted at once: half as many after each time that memory ran out.

    Raises InputError where not even one fits.
    """
    order = sorted(range(len(features)), key=lambda i: -len(features[i].input_ids))
    outputs: list[Any] = [None] * len(features)
    model.eval()
    done, size = 0, EVAL_BATCH
    with torch.inference_mode():
        while done < len(order):
            chunk = order[done : done + size]
            found = _fitting(partial(codec.predict, model, [features[i] for i in chunk], device))
            if found is None:
                size = _halved(size, codec)
                continue
            for i, output in zip(chunk, found, strict=True):
                outputs[i] = output
            done += len(chunk)
            stage.at(done, len(order))
    return outputs, size


def _fitting(call: Callable[[], list[Any]]) -> list[Any] | None:
    """What the call returns; None where memory ran out."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    return None


def _halved(size: int, codec: Codec) -> int:
    if size == 1:
        raise InputError(f"{codec.cell.id} does not fit: memory runs out when it predicts one row at a time")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2
