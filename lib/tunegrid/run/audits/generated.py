"""The audit of a decoder: it sees no future. What it generates from is the matter of `tunegrid.run.audits.scored`."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunegrid.grid.methods import Answer
from tunegrid.run.audits.evidence import Evidence
from tunegrid.run.audits.probing import allowance, distance, of_targets, target_logits, undisturbed


def decoder_sees_no_future(evidence: Evidence) -> Answer:
    """Another token in the middle of a target leaves that token's own logits and all earlier ones as they were."""
    rows = evidence.asked.rows if evidence.codec.generates else []
    if not rows or min(len(row.target) for row in rows) < 2:
        return None
    middles = [len(row.target) // 2 for row in rows]
    others = [replace(row, target=_with_other(row.target, i)) for row, i in zip(rows, middles, strict=True)]
    before = of_targets(evidence.asked.together[0], evidence.codec.collate(rows))
    with torch.no_grad(), undisturbed(evidence.trainer), evidence.trainer.accelerator.autocast():
        after = target_logits(evidence.trainer, others)
    apart = max(distance(a[: i + 1], b[: i + 1]) for a, b, i in zip(before, after, middles, strict=True))
    return apart <= allowance(evidence.trainer), f"earlier logits differ by {apart:.1e} of the largest"


def _with_other(target: Sequence[int], place: int) -> list[int]:
    """The target with another token at a place: the first one that differs from it."""
    other = next((token for token in target if token != target[place]), 0)
    return [*target[:place], other, *target[place + 1 :]]
