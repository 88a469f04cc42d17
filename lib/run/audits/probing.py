"""A trained model asked again, by audits that need no baseline. In: evidence. Out: logits, and what may differ by rounding.

Each audit asks about the same few rows, and leaves modes, random numbers and gradients as they were.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lib.codecs.base import IGNORED, Batch, Feature, on
from lib.run.audits.evidence import SAMPLE, Evidence, sample
from lib.run.build import base_type
from lib.run.training import random_states, set_random_states

ROWS = 3  # a short row, a middling and a long one


def few_rows(evidence: Evidence) -> list[Feature]:
    """The shortest, the middle and the longest of some training rows: side by side they have padding."""
    ordered = sorted(sample(evidence.trainer.features, 4 * SAMPLE), key=lambda feature: len(feature.input_ids))
    return [ordered[i] for i in sorted({0, len(ordered) // 2, len(ordered) - 1})]


def in_full_precision(evidence: Evidence) -> bool:
    """Whether all that training computes is fp32: no autocast, no base in another type, nothing packed."""
    plain = evidence.cell.quantization is None and base_type(evidence.cell) is torch.float32
    return plain and evidence.trainer.course.precision == "fp32"


@contextmanager
def undisturbed(evidence: Evidence, *, training: bool = False) -> Iterator[None]:
    """The model in evaluation mode, or in training mode; afterwards modes and random numbers are as they were."""
    device = evidence.trainer.meter.device
    modes, states = {module: module.training for module in evidence.model.modules()}, random_states(device)
    evidence.model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        set_random_states(device, states)


def logits_of(evidence: Evidence, features: Sequence[Feature]) -> tuple[list[Tensor], Batch]:
    """What the model answers to a training batch, each (B, ...), and the batch; no logits where its output names none."""
    batch = on(evidence.trainer.meter.device, evidence.codec.collate(features))
    outputs: list[Any] = []
    handle = evidence.model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        evidence.codec.loss(evidence.model, batch)
    finally:
        handle.remove()
    named = [getattr(outputs[-1], name, None) for name in ("logits", "start_logits", "end_logits")]
    return [logits for logits in named if logits is not None], batch


def target_logits(evidence: Evidence, features: Sequence[Feature]) -> list[Tensor]:
    """The logits (T, V) that each row's target tokens are predicted from, of a codec that generates."""
    [logits], batch = logits_of(evidence, features)
    labels = batch["labels"]
    if "decoder_input_ids" not in batch:  # one sequence: a token is predicted at the place before it
        logits, labels = logits[:, :-1], labels[:, 1:]
    return [row[mask].float() for row, mask in zip(logits, labels != IGNORED, strict=True)]


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors, in units of the largest value."""
    scale = max(float(ours.detach().abs().max()), float(theirs.detach().abs().max()))
    return float((ours.detach().float() - theirs.detach().float()).abs().max()) / scale if scale else 0.0
