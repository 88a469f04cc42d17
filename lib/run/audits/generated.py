"""Audits of generation: the cache changes nothing, a decoder sees no future, evaluated texts are the model's own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lib.codecs.generate import GenerateCodec
from lib.grid.methods import Answer
from lib.grid.recipes import Generation
from lib.run.audits.evidence import Evidence
from lib.run.audits.probing import AMONG, allowance, distance, of_targets, target_logits, undisturbed

TOKENS = 4  # generated in a search beyond the recipe's minimum
BEAMS = 3  # all are looked at: the first one may never change its place, and then needs no reordered cache


def cache_changes_nothing(evidence: Evidence) -> Answer:
    """The scores that a search with a cache gave to its tokens are those of the whole text in one pass without it.

    Every beam is held against the model's own scores, not against another search: a near-tie is no fault.
    """
    codec = evidence.codec
    if not isinstance(codec, GenerateCodec):
        return None
    rows = evidence.asked.rows
    with torch.no_grad(), undisturbed(evidence.trainer):
        output = codec.generate(
            evidence.model,
            rows,
            evidence.trainer.meter.device,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            max_new_tokens=min(codec.generation.max_new_tokens, codec.generation.min_length + TOKENS),
            output_logits=True,
            return_dict_in_generate=True,
        )
        texts = [codec.until_end(ids) for ids in output.sequences.tolist()]
        whole = target_logits(evidence.trainer, [replace(rows[i // BEAMS], target=ids) for i, ids in enumerate(texts)])
    apart = max(
        float((searched[: len(ids)] - _chosen(logits.log_softmax(-1), ids)).abs().max() / logits.abs().max())
        for searched, logits, ids in zip(_searched(output), whole, texts, strict=True)
    )
    return apart <= allowance(evidence.trainer), f"{len(texts)} beams: scores differ by {apart:.1e} of the largest logit"


def greedy_texts_are_the_models(evidence: Evidence) -> Answer:
    """Each token of an evaluated text, searched without beams, is what the model gives the highest score, or nearly so."""
    codec, evaluation = evidence.codec, evidence.evaluation
    if evaluation is None or not isinstance(codec, GenerateCodec) or _constrained(codec.generation):
        return None
    answered = sorted(zip(map(len, evaluation.outputs), range(AMONG), strict=False))
    chosen = [i for length, i in (answered[0], answered[-1]) if length]
    texts = [evaluation.outputs[i] for i in chosen]
    with torch.no_grad(), undisturbed(evidence.trainer):
        features = [replace(evaluation.features[i], target=ids) for i, ids in zip(chosen, texts, strict=True)]
        whole = target_logits(evidence.trainer, features)
    gaps = [
        float((logits.amax(-1) - _chosen(logits, ids)).max() / logits.abs().max())
        for logits, ids in zip(whole, texts, strict=True)
    ]
    apart = max(gaps, default=0.0)
    return apart <= allowance(evidence.trainer), f"{len(texts)} texts: at most {apart:.1e} of the largest logit below the best"


def _constrained(search: Generation) -> bool:
    """Whether a search may choose another token than the model's first one."""
    return search.num_beams > 1 or search.min_length > 0 or search.no_repeat_ngram_size > 0


def _chosen(scores: Tensor, ids: Sequence[int]) -> Tensor:
    """Scores (T) of a text's tokens, of those (T, V) of all tokens."""
    return scores.gather(1, torch.tensor(ids, device=scores.device).unsqueeze(1)).squeeze(1)


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
