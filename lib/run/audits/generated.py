"""Audits of generation: the cache changes nothing, a decoder sees no future, evaluated texts are the model's own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lib.codecs.generate import GenerateCodec
from lib.grid.methods import Answer
from lib.run.audits.evidence import Evidence
from lib.run.audits.probing import allowance, distance, target_logits, undisturbed

TOKENS = 4  # generated in a search beyond the recipe's minimum
BEAMS = (1, 3)


def cache_changes_nothing(evidence: Evidence) -> Answer:
    """The scores that a search with a cache gave to its tokens are those of the whole text in one pass without it.

    Every beam is held against the model's own scores, not against another search: a near-tie is no fault.
    """
    codec = evidence.codec
    if not isinstance(codec, GenerateCodec):
        return None
    with torch.no_grad(), undisturbed(evidence.trainer):
        gaps = {beams: _gap(evidence, codec, beams) for beams in BEAMS}
    right = max(gaps.values()) <= allowance(evidence.trainer)
    return right, "log-probabilities differ by " + ", ".join(f"{gap:.1e} with {beams} beams" for beams, gap in gaps.items())


def _gap(evidence: Evidence, codec: GenerateCodec, beams: int) -> float:
    """The largest difference in a token's log-probability, in units of its text's largest logit."""
    rows, search = evidence.asked.rows, codec.generation
    output = codec.generate(
        evidence.model,
        rows,
        evidence.trainer.meter.device,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=min(search.max_new_tokens, search.min_length + TOKENS),
        output_logits=True,
        return_dict_in_generate=True,
    )
    texts = [codec.until_end(ids) for ids in output.sequences.tolist()]
    whole = target_logits(evidence.trainer, [replace(rows[i // beams], target=ids) for i, ids in enumerate(texts)])
    apart = [
        (searched[: len(ids)] - _chosen(logits, ids)).abs().max() / logits.abs().max()
        for searched, logits, ids in zip(_searched(output), whole, texts, strict=True)
    ]
    return max(map(float, apart))


def _chosen(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Log-probabilities (T) of tokens, from logits (T, V)."""
    return logits.log_softmax(-1).gather(1, torch.tensor(ids, device=logits.device).unsqueeze(1)).squeeze(1)


def _searched(output: Any) -> Tensor:
    """Log-probabilities (texts, T) that a search gave to the tokens of its texts, before it changed any."""
    steps = torch.stack(output.logits).float().log_softmax(-1)  # (T, texts, V)
    tokens = output.sequences[:, : len(steps)]
    places = getattr(output, "beam_indices", None)
    if places is None:
        places = torch.arange(len(tokens), device=tokens.device).unsqueeze(1).expand_as(tokens)
    places = places[:, : tokens.shape[1]].clamp(min=0)  # -1 behind the end of a text
    times = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return steps[times, places, tokens]


def decoder_sees_no_future(evidence: Evidence) -> Answer:
    """Another token in the middle of a target leaves that token's own logits and all earlier ones as they were."""
    rows = [row for row in evidence.asked.rows if len(row.target) > 1] if evidence.codec.generates else []
    if not rows:
        return None
    middles = [len(row.target) // 2 for row in rows]
    others = [replace(row, target=_with_other(row.target, i)) for row, i in zip(rows, middles, strict=True)]
    with torch.no_grad(), undisturbed(evidence.trainer):
        before, after = target_logits(evidence.trainer, rows), target_logits(evidence.trainer, others)
    apart = max(distance(a[: i + 1], b[: i + 1]) for a, b, i in zip(before, after, middles, strict=True))
    return apart <= allowance(evidence.trainer), f"earlier logits differ by {apart:.1e} of the largest"


def _with_other(target: Sequence[int], place: int) -> list[int]:
    """The target with another token at a place: the first one that differs from it."""
    other = next((token for token in target if token != target[place]), 0)
    return [*target[:place], other, *target[place + 1 :]]
