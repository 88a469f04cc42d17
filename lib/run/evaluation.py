"""Evaluation. In: a trained model, its head, rows. Out: a prediction a row, and scores in points."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib.data.sources import Row
from lib.grid.tasks import Problem
from lib.heads.base import Head, Prediction
from lib.run.metrics import METRICS, Metrics
from lib.run.progress import Progress

EVAL_BATCH = 64  # rows; large, since no gradients are kept and sorted rows waste little on padding


@dataclass(kw_only=True)
class Evaluation:
    """What a model scores on some rows.

    Attributes:
        scores: points, 0 to 100, by metric.
        loss: mean loss in nats a row, where the head computes one.
        seconds: of prediction alone, without encoding and scoring.
        sources: which implementation computed the scores.
    """

    predictions: list[Prediction]
    scores: dict[str, float]
    loss: float | None
    seconds: float
    samples_per_second: float
    sources: dict[str, str]


def evaluate(
    model: nn.Module, head: Head, rows: Sequence[Row], metrics: Metrics, device: torch.device, progress: Progress
) -> Evaluation:
    """Predict every row, longest first, and score against its references."""
    features = head.encode(rows, training=False)
    order = sorted(range(len(features)), key=lambda i: -len(features[i].input_ids))
    outcomes: list[Any] = [None] * len(features)
    model.eval()
    stage = progress.stage("evaluate")
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(order), EVAL_BATCH):
            chunk = order[start : start + EVAL_BATCH]
            for i, outcome in zip(chunk, head.predict(model, [features[i] for i in chunk], device), strict=True):
                outcomes[i] = outcome
            stage.at(start + len(chunk), len(order))
    seconds = time.perf_counter() - began
    predictions = head.decode(rows, features, outcomes)
    scores = METRICS[head.cell.task.problem](metrics, rows, [prediction.value for prediction in predictions])
    losses = [prediction.loss for prediction in predictions if prediction.loss is not None]
    return Evaluation(
        predictions=predictions,
        scores=scores,
        loss=sum(losses) / len(losses) if losses else None,
        seconds=seconds,
        samples_per_second=len(rows) / seconds,
        sources=metrics.sources(Problem(head.cell.task.problem)),
    )
