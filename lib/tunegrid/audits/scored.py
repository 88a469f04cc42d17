"""Audits of the very answers that were scored: each row alone, without a cache, is answered as it was in its batch.

A few rows of the evaluation stand for all: one with much padding in its batch, the longest, and the shortest.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tunegrid.audits.evidence import Evidence
from tunegrid.audits.search import Scores, repeating, shortfall
from tunegrid.codecs.base import Feature
from tunegrid.codecs.features import chunks, lengths_of
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.grid.methods import Answer
from tunegrid.run.build import base_type
from tunegrid.run.device import autocast
from tunegrid.run.evaluate import EVAL_BATCH, Evaluation
from tunegrid.run.probe import COARSE, FINE, chosen, distance, hooked, searched, target_logits, undisturbed

SIDE_BY_SIDE = 2  # rows that are searched again with a cache: the longest text, and the shortest prompt, which is padded
SCORED_TEXTS = 32  # of which the most doubtful are searched anew; so many are looked at at once:
AT_ONCE = 8
SEARCHED = 1  # a search takes one pass per token
MOST_ON_CPU = 2**43  # products of a weight and a token in a search: two minutes of one core at 65e9 a second


def scored_rows(evaluation: Evaluation) -> list[int]:
    """The shortest feature, the last and so most padded one of the first batch, and the longest."""
    lengths = lengths_of(evaluation.features)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    last = len(order) - 1
    return [order[index] for index in dict.fromkeys((last, min(EVAL_BATCH - 1, last), 0))]


def scored_alone_as_in_batch(evidence: Evidence) -> Answer:
    """A scored row, answered again alone, has the scores that it was answered by in its batch."""
    evaluation, codec = evidence.evaluation, evidence.codec
    if evaluation is None or codec.generates:
        return None
    indices = scored_rows(evaluation)
    device = evidence.trainer.meter.device
    with torch.no_grad(), undisturbed(evidence.trainer), autocast(evaluation.part.precision or "fp32", device):
        alone = [codec.predict(evidence.model, [evaluation.features[i]], device)[0] for i in indices]
    pairs = [(codec.scores(evaluation.outputs[i]), codec.scores(again)) for i, again in zip(indices, alone, strict=True)]
    if not all(ours for ours, _ in pairs):
        return None
    ours, theirs = (torch.tensor([score for pair in pairs for score in pair[side]]) for side in (0, 1))
    apart = distance(ours, theirs)
    return apart <= _allowed(evidence), f"{len(indices)} rows: scores differ by {apart:.1e} of the largest"


def cache_changes_nothing(evidence: Evidence) -> Answer:
    """Searched again as scored texts were, with a cache, all beams' scores are those of whole texts in one pass without it."""
    codec = evidence.codec
    if not isinstance(codec, GenerateCodec):
        return None
    rows = [row for row, _ in _scored_texts(evidence)[:SIDE_BY_SIDE]] or evidence.probe.rows
    texts, apart = searched(evidence.trainer, rows)
    longest = max(map(len, texts))
    detail = f"{len(texts)} texts of up to {longest} tokens: scores differ by {apart:.1e} of the largest logit"
    return apart <= _allowed(evidence), detail


def texts_are_the_models(evidence: Evidence) -> Answer:
    """Each scored text is what the recipe's search finds, computed anew: alone, without a cache, beams included.

    Without beams, this costs one pass per text. With beams, it costs one pass per token of the one text that is searched anew,
    each over as many whole texts as there are beams, and more where the search goes on behind that text's end. On a CPU, texts
    whose search would take more than `MOST_ON_CPU` are left alone. None where no text is left.
    """
    codec, evaluation = evidence.codec, evidence.evaluation
    if evaluation is None or not isinstance(codec, GenerateCodec):
        return None
    with torch.no_grad(), undisturbed(evidence.trainer):
        pairs = _scored_texts(evidence) if codec.generation.num_beams == 1 else _doubtful(evidence, codec, evaluation)
        gaps = [_missed(evidence, codec, row, text) for row, text in pairs if text]
    if not gaps:
        return None
    apart = max(gaps)
    return apart <= _allowed(evidence), f"{len(gaps)} texts: at most {apart:.1e} of the largest logit below the best"


def _scored_texts(evidence: Evidence) -> list[tuple[Feature, Sequence[int]]]:
    """Some scored rows with the texts that were generated for them: the longest text, then by the length of what was read."""
    evaluation = evidence.evaluation
    if evaluation is None:
        return []
    longest = max(range(len(evaluation.outputs)), key=lambda i: len(evaluation.outputs[i]))
    chosen_rows = dict.fromkeys([longest, *scored_rows(evaluation)])
    return [(evaluation.features[i], evaluation.outputs[i]) for i in chosen_rows]


def _doubtful(evidence: Evidence, codec: GenerateCodec, evaluation: Evaluation) -> list[tuple[Feature, Sequence[int]]]:
    """Of many scored texts those with the least likely token: where beams went astray, a token does not suit its text."""
    spread = range(0, len(evaluation.outputs), math.ceil(len(evaluation.outputs) / SCORED_TEXTS))
    pairs = [(evaluation.features[i], evaluation.outputs[i]) for i in spread if evaluation.outputs[i]]
    pairs.sort(key=lambda pair: len(pair[0].input_ids))
    if evidence.trainer.meter.device.type == "cpu":
        weights = sum(p.numel() for p in evidence.model.parameters())
        pairs = [pair for pair in pairs if weights * searched_tokens(codec, *pair) <= MOST_ON_CPU]
    doubts: list[float] = []
    for some in chunks(pairs, AT_ONCE):
        logits = target_logits(evidence.trainer, [replace(row, target=[*text]) for row, text in some])
        for (row, text), whole in zip(some, logits, strict=True):
            scores = _allowed_scores(codec, row, whole, [text[:length] for length in range(len(text))])
            doubts.append(float((scores.amax(-1) - chosen(scores, text)).max()))
    return [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: -doubts[i])[:SEARCHED]]


def searched_tokens(codec: GenerateCodec, row: Feature, text: Sequence[int]) -> int:
    """How many tokens a search without a cache computes until it has found this text; an encoder reads its source once."""
    prompt = len(row.input_ids) if codec.start_id is None else 0
    return codec.generation.num_beams * sum(prompt + length for length in range(1, len(text) + 1))


def _missed(evidence: Evidence, codec: GenerateCodec, row: Feature, text: Sequence[int]) -> float:
    """How far off a search must be to find this text, in units of the largest logit."""
    encoders = [] if codec.start_id is None else [evidence.model.get_encoder()]  # type: ignore[operator]
    encoded: list[Tensor] = []
    with hooked(encoders, lambda module, inputs, output: encoded.append(output[0])):
        [whole] = target_logits(evidence.trainer, [replace(row, target=[*text])])
    scores = _next_scores(evidence, codec, row, whole, encoded[0] if encoded else None)
    return shortfall(text, scores, codec.generation, codec.end_id) / float(whole.abs().max())


def _next_scores(evidence: Evidence, codec: GenerateCodec, row: Feature, whole: Tensor, encoded: Tensor | None) -> Scores:
    """Scores of the next token behind any begun text; without beams there is just one, whose logits `whole` holds.

    `encoded` is what an encoder made of the row's source.
    """

    def scores(begun: Sequence[Sequence[int]]) -> Tensor:
        if codec.generation.num_beams == 1:
            logits = whole[len(begun[0])].unsqueeze(0)
        else:  # the last token, whatever it is, is what they are asked to predict
            batch = [replace(row, target=[*ids, codec.end_id]) for ids in begun]
            logits = torch.stack([one[-1] for one in target_logits(evidence.trainer, batch, encoded)])
        return _allowed_scores(codec, row, logits, begun)

    return scores


def _allowed_scores(codec: GenerateCodec, row: Feature, logits: Tensor, begun: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities (N, V) of the next token behind N begun texts; minus infinity for what the recipe's search forbids."""
    scores = logits.log_softmax(-1)
    for one, ids in zip(scores, begun, strict=True):
        one[_forbidden(codec, row, ids)] = -torch.inf
    return scores


def _forbidden(codec: GenerateCodec, row: Feature, ids: Sequence[int]) -> list[int]:
    """Tokens that the recipe's search may not take next: those that repeat an n-gram, and the end before its least length."""
    begin = row.input_ids if codec.start_id is None else [codec.start_id]
    search = codec.generation
    counted = len(ids) + (codec.start_id is not None)  # transformers counts an encoder-decoder's start token
    return [*repeating([*begin, *ids], search.no_repeat_ngram_size), *([codec.end_id] if counted < search.min_length else [])]


def _allowed(evidence: Evidence) -> float:
    """How far rounding may take scores apart: a base in 4 bits or 16 is coarse, and so is evaluation in bf16."""
    plain = evidence.cell.quantization is None and base_type(evidence.cell) is torch.float32
    return FINE if plain and (evidence.evaluation is None or evidence.evaluation.part.precision == "fp32") else COARSE
