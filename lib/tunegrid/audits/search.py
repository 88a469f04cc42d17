"""Audits of generated texts: compared with the search as it is defined, without a cache.

Two searches may part at a tie, and end with other texts. Rounding decides ties, so it is measured
where a text differs, by a copy of the model in fp64. None of a library's search is used.
"""

import copy
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from tunegrid.audits.evidence import Evidence
from tunegrid.codecs.base import Feature
from tunegrid.codecs.features import chunks, get_lengths
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.grid.methods import Answer, Measured
from tunegrid.grid.recipes import Generation
from tunegrid.run.build import base_type, train_in_fp32, unpack_weight
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.probe import (
    COARSE,
    FINE,
    attach,
    get_logits,
    keep_state,
    run_search,
    target_logits,
    target_rows,
    token_scores,
)
from tunegrid.words import contrast

# On a quick cell, 8 texts cost 0.2 s, 64 cost 1.4 s and all 192 cost 4 s. A pass over 64 costs 0.3
# s and tells which are open: a broken rule changes a few of 192 texts, and one of these is nearly
# always among the tenth that is most open.
OPEN, SPREAD = 8, 4  # scored texts that are searched again
CANDIDATES = 64  # scored texts, evenly spread, of which the most open ones are chosen
FEW_OPEN, FEW_CANDIDATES = 4, 32  # of true-size models, whose passes take long
AT_ONCE = 16  # texts of micro models that are searched side by side; others' logits are large
# Rules that act in every search: an unsure model meets long texts that win, repeated words, and
# ends that come too early. With fewer tokens or a weaker penalty, early stopping changes none of 16
# rows; with these it changes the beams of 5 to 11.
PROVOKED = 4  # rows that are searched by them, the shortest ones, each read backwards
PROVOKING = Generation(num_beams=4, no_repeat_ngram_size=2, length_penalty=6.0, max_new_tokens=28)
# Times the rounding of a text. The library's own pass rounds once more, and often in more steps.
# Most ties are far closer, and a noise that decides only them leaves the rest of the search as it
# is.
NOISES = (1 / 64, 1 / 16, 1 / 4, 1, 4)
NOISY_SEARCHES = 16  # with each noise: of two equal scores, each is found first in half of them
MOST_COPIED = 10**9  # parameters of a model that is copied to fp64: 8 GB

Text = tuple[int, ...]  # its tokens
# Asks for the next token's scores (N, V) behind N begun texts of one length, in nats.
Search = Generator[Sequence[Text], Tensor, "list[Beam]"]


def cache_changes_nothing(evidence: Evidence) -> Answer:
    """Searched again with a cache, all beams' tokens have the scores of a pass without one.

    The longest text and the shortest prompt, which is padded, are searched up to the recipe's most
    tokens. The score of a text is the sum of its tokens', divided by its own length to the power of
    the penalty.
    """
    if not isinstance(evidence.codec, GenerateCodec):
        return None
    evaluation = evidence.evaluation
    rows: Sequence[Feature] = evidence.probe.rows
    if evaluation is not None:
        lengths = get_lengths(evaluation.features)
        longest = max(range(len(lengths)), key=lambda i: len(evaluation.outputs[i]))
        shortest = min(range(len(lengths)), key=lambda i: lengths[i])
        rows = [evaluation.features[i] for i in dict.fromkeys((longest, shortest))]
    found = run_search(evidence.trainer, rows)
    if not found.total_gap <= FINE:  # whatever the model computes in
        detail = "the score of a text is off the sum of its tokens' for its length by"
        return Measured(
            found.total_gap, FINE
        ), f"{detail} {found.total_gap:.1e} of the largest logit"
    detail = (
        f"{len(found.texts)} texts of up to {max(map(len, found.texts))} tokens: scores differ by"
    )
    return Measured(found.gap, leeway(evidence)), f"{detail} {found.gap:.1e} of the largest logit"


def texts_are_the_models(evidence: Evidence) -> Answer:
    """A scored text is what the recipe's search finds by its definition: alone, without a cache.

    Some are evenly spread, and some are most open to another text. In fp32, a few rows more are
    searched by rules of which each decides, and all beams compared; beams of coarse numbers tie
    without end. A model of true size would take minutes on a CPU, and is left out.
    """
    codec = evidence.text_codec
    evaluation = evidence.scored
    if evidence.device.type == "cpu" and not evidence.cell.profile.micro:
        return None
    with torch.no_grad(), keep_state(evidence.trainer):
        indices = choose_texts(evidence, evaluation)
        if not indices:
            return None
        rows = [evaluation.features[i] for i in indices]
        pools = [[tuple(evaluation.outputs[i])] for i in indices]
        scored = search_gaps(evidence, rows, codec.generation, pools)
        provoked = provoke(evidence, evaluation) if leeway(evidence) == FINE else []
    worst = max([*scored, *provoked], key=lambda gap: gap.noise)
    ties = sum(gap.noise > 0 for gap in (*scored, *provoked))
    detail = f"{len(scored)} texts, {len(provoked)} rows by stricter rules; {ties} after a tie"
    if worst.noise > NOISES[-1]:
        fault = "a scored text" if worst in scored else "of a row read backwards, a text"
        difference = show_difference(codec, worst)
        detail = f"{fault} is not what the search finds, by rounding neither: {difference}"
    return Measured(worst.noise, NOISES[-1]), detail


def leeway(evidence: Evidence) -> float:
    """The distance of scores that rounding may explain: a base in 4 or 16 bits is coarse, as is
    bf16.
    """
    is_fp32 = evidence.cell.quantization is None and base_type(evidence.cell) is torch.float32
    if is_fp32 and (evidence.evaluation is None or evidence.evaluation.part.precision == "fp32"):
        return FINE
    return COARSE


# The texts that are searched again


def choose_texts(evidence: Evidence, evaluation: Evaluation) -> list[int]:
    """Indices of scored texts: some evenly spread, and those that are most open to another text."""
    micro = evidence.cell.profile.micro
    indices = spread_indices(len(evaluation.outputs), CANDIDATES if micro else FEW_CANDIDATES)
    lengths = get_lengths(evaluation.features)
    candidates = sorted((i for i in indices if evaluation.outputs[i]), key=lambda i: lengths[i])
    openness: dict[int, float] = {}
    for batch in chunks(candidates, AT_ONCE if micro else 1):
        rows = [replace(evaluation.features[i], target=[*evaluation.outputs[i]]) for i in batch]
        for i, row, logits in zip(batch, rows, target_logits(evidence.trainer, rows), strict=True):
            scores = logits.log_softmax(-1)
            openness[i] = get_openness(scores, row.target, evidence.text_codec.generation)
    ranked = sorted(candidates, key=lambda i: -openness[i])
    spread = spread_indices(len(candidates), SPREAD)
    chosen = ranked[: OPEN if micro else FEW_OPEN] + [candidates[i] for i in spread]
    return list(dict.fromkeys(chosen))


def spread_indices(count: int, most: int) -> range:
    """At most `most` numbers below `count`, evenly spread."""
    return range(0, count, max(1, math.ceil(count / most)))


def get_openness(scores: Tensor, text: Sequence[int], search: Generation) -> float:
    """The lead over a text that another one may have, if it leaves the text and is then sure.

    Scores (T, V) are log-probabilities of each next token. A text whose value is far below 0 has no
    rival.
    """
    own_scores = token_scores(scores, text)
    tokens = torch.tensor(text, device=scores.device).unsqueeze(1)
    rivals = scores.scatter(1, tokens, -torch.inf).amax(1)
    totals = own_scores.cumsum(0)
    best = float((totals - own_scores + rivals).max())
    longest = math.pow(search.max_new_tokens, search.length_penalty)
    return best / longest - float(totals[-1]) / math.pow(len(text), search.length_penalty)


def provoke(evidence: Evidence, evaluation: Evaluation) -> list["Gap"]:
    """Compares all beams of a library's search with the defined ones, by rules that decide."""
    codec = evidence.text_codec
    lengths = get_lengths(evaluation.features)
    shortest = sorted(range(len(lengths)), key=lambda i: lengths[i])[:PROVOKED]
    rows = [read_backwards(codec, evaluation.features[i]) for i in shortest]
    cap = min(PROVOKING.max_new_tokens, codec.generation.max_new_tokens)
    rules = replace(PROVOKING, max_new_tokens=cap, min_length=max(1, cap // 2))
    found = run_search(evidence.trainer, rows, rules)
    pools = [[tuple(ids) for ids in pool] for pool in chunks(found.texts, rules.num_beams)]
    return search_gaps(evidence, rows, rules, pools)


def read_backwards(codec: GenerateCodec, row: Feature) -> Feature:
    """A row whose source is read from its end: the model is unsure, and its beams part."""
    before, after = codec.frame()
    ids = list(row.input_ids)
    source = slice(len(before), len(ids) - len(after))
    ids[source] = ids[source][::-1]
    return replace(row, input_ids=ids)


# What the search finds, and what rounding changes


class Gap(NamedTuple):
    """A row's texts, those that the search finds, and the noise with which it finds the former."""

    texts: Sequence[Text]
    expected: Sequence[Text]
    noise: float  # in units of rounding; infinite: with none of `NOISES`


class Beams:
    """The logits behind begun texts of some rows, from passes over whole texts, for searches."""

    def __init__(
        self, evidence: Evidence, rows: Sequence[Feature], texts: Sequence[Sequence[int]]
    ) -> None:
        """A row's text is likely to be found: a pass over it gives the logits behind all its
        beginnings.
        """
        self.evidence = evidence
        self.rows = rows
        self.texts = texts
        self.codec = evidence.text_codec
        encoders = []
        if self.codec.start_id is not None:
            encoders = [evidence.model.get_encoder()]  # type: ignore[operator]
        encodings: list[Tensor] = []  # an encoder's output for the rows' sources
        with attach(encoders, lambda module, inputs, output: encodings.append(output[0])):
            targets = [replace(row, target=[*text]) for row, text in zip(rows, texts, strict=True)]
            self.whole = target_logits(evidence.trainer, targets)
        self.encoded = encodings[0] if encodings else None
        # Of an encoder's input, before the sources: a prompt that is tuned.
        self.learned = encodings[0].shape[1] - longest_source(rows) if encodings else 0
        self.known: list[dict[Text, Tensor]] = [{} for _ in rows]
        for i, text in enumerate(texts):
            self.learn(i, tuple(text), self.whole[i])

    def ask(self, requests: Mapping[int, Sequence[Text]]) -> None:
        """Make the logits behind each row's begun texts known."""
        drafts = []
        for i, beginnings in requests.items():
            for ids in beginnings:
                if ids not in self.known[i]:
                    # Beams often go on as the text does: with its rest, a pass covers longer ones.
                    rest = self.texts[i][len(ids) :] or [self.codec.end_id]
                    drafts.append((i, (*ids, *rest)))
        if not drafts:
            return
        batch = [replace(self.rows[i], target=[*draft]) for i, draft in drafts]
        encoded = None
        if self.encoded is not None:
            encoded = self.encoded[[i for i, _ in drafts], : self.learned + longest_source(batch)]
        rows = target_logits(self.evidence.trainer, batch, encoded)
        for (i, draft), logits in zip(drafts, rows, strict=True):
            self.learn(i, draft, logits)

    def learn(self, i: int, text: Text, logits: Tensor) -> None:
        """Keep the logits (T, V) behind each beginning of a row's text."""
        for length, next_logits in enumerate(logits):
            self.known[i][text[:length]] = next_logits

    def search(
        self,
        rules: Generation,
        indices: Sequence[int],
        noise: float = 0.0,
        draw: int = 0,
    ) -> list[list["Beam"]]:
        """The beams of a search for each of these rows, with normal noise on all scores, in
        nats.
        """
        generator = torch.Generator().manual_seed(draw)
        searches = {i: beam_search(rules, self.codec.end_id) for i in indices}
        requests = {i: next(search) for i, search in searches.items()}
        pools: dict[int, list[Beam]] = {}
        while requests:
            self.ask(requests)
            for i, beginnings in [*requests.items()]:
                logits = torch.stack([self.known[i][ids] for ids in beginnings])
                scores = allowed_scores(self.codec, rules, self.rows[i], logits, beginnings)
                if noise:
                    scores = scores + noise * torch.randn(scores.shape, generator=generator).to(
                        scores.device
                    )
                try:
                    requests[i] = searches[i].send(scores)
                except StopIteration as end:
                    pools[i] = end.value
                    del requests[i]
        return [pools[i] for i in indices]


def longest_source(rows: Sequence[Feature]) -> int:
    """The tokens that the sources of rows in one batch are padded to."""
    return max(len(row.input_ids) for row in rows)


def search_gaps(
    evidence: Evidence,
    rows: Sequence[Feature],
    rules: Generation,
    pools: Sequence[Sequence[Text]],
) -> list[Gap]:
    """Compares each row's texts, its best ones, with as many that the search finds."""
    gaps: list[Gap] = []
    batch_size = AT_ONCE if evidence.cell.profile.micro else 1
    for start in range(0, len(rows), batch_size):
        batch_pools = pools[start : start + batch_size]
        beams = Beams(evidence, rows[start : start + batch_size], [pool[0] for pool in batch_pools])
        found = beams.search(rules, range(len(batch_pools)))
        for i, (texts, pool) in enumerate(zip(batch_pools, found, strict=True)):
            expected = [beam.ids for beam in pool[: len(texts)]]
            # One that rounding does not explain is enough.
            is_open = expected != [*texts] and all(gap.noise <= NOISES[-1] for gap in gaps)
            noise = find_noise(beams, rules, i, texts) if is_open else 0.0
            gaps.append(Gap(texts, expected, noise))
    return gaps


def find_noise(beams: Beams, rules: Generation, place: int, texts: Sequence[Text]) -> float:
    """The least of `NOISES` with which a search finds these texts of a row, or infinity."""
    rounding = get_rounding(beams, place)
    for factor in NOISES:
        for draw in range(NOISY_SEARCHES):
            [pool] = beams.search(rules, [place], factor * rounding, draw)
            if [beam.ids for beam in pool[: len(texts)]] == [*texts]:
                return float(factor)
    return math.inf


def get_rounding(beams: Beams, place: int) -> float:
    """The largest error of the scores along a row's text, in nats: from those in fp64."""
    evidence = beams.evidence
    logits = beams.whole[place]
    limit = leeway(evidence) * float(logits.abs().max())
    if sum(parameter.numel() for parameter in evidence.model.parameters()) > MOST_COPIED:
        return limit
    model = copy_in_fp64(evidence.model)
    row = replace(beams.rows[place], target=[*beams.texts[place]])
    exact_logits, batch = get_logits(evidence.trainer, [row], model)
    [exact] = target_rows(exact_logits[0], batch, [row])
    errors = logits.log_softmax(-1).double() - exact.double().log_softmax(-1)
    return min(limit, float(errors.abs().max()))  # a fault is larger than rounding


def copy_in_fp64(model: nn.Module) -> nn.Module:
    """The model in fp64, its packed layers unpacked."""
    double = copy.deepcopy(model)
    for module in [*double.modules()]:
        for name, layer in [*module.named_children()]:
            if isinstance(layer, bnb.nn.Linear4bit):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
                plain.weight = nn.Parameter(unpack_weight(layer.weight), requires_grad=False)
                plain.bias = layer.bias
                setattr(module, name, plain)
        for key, hook in [*module._forward_pre_hooks.items()]:
            if hook.__qualname__.startswith(train_in_fp32.__qualname__):
                del module._forward_pre_hooks[key]
    return double.double().eval()


def show_difference(codec: GenerateCodec, gap: Gap) -> str:
    """The first text of a row that the search does not find, and the one that it finds."""
    for ids, expected_ids in zip(gap.texts, gap.expected, strict=False):
        if ids != expected_ids:
            text = codec.tokenizer.decode([*ids])
            expected = codec.tokenizer.decode([*expected_ids])
            return contrast(text, expected) if text != expected else "other tokens, the same text"
    return f"{len(gap.texts)} texts for {len(gap.expected)}"


def allowed_scores(
    codec: GenerateCodec,
    rules: Generation,
    row: Feature,
    logits: Tensor,
    begun: Sequence[Sequence[int]],
) -> Tensor:
    """Log-probabilities (N, V) of the next token behind N begun texts.

    Minus infinity marks tokens that the search forbids: one that repeats an n-gram, and the end
    before the least length.
    """
    scores = logits.log_softmax(-1)
    prompt = row.input_ids if codec.start_id is None else [codec.start_id]
    size = rules.no_repeat_ngram_size
    for text_scores, ids in zip(scores, begun, strict=True):
        length = len(ids) + (codec.start_id is not None)  # transformers counts a decoder's start
        tokens = [*prompt, *ids]
        ends = range(size - 1, len(tokens)) if size else ()  # of n-grams; of size 0 any may repeat
        tail = tokens[len(tokens) - size + 1 :]
        forbidden = [tokens[i] for i in ends if tokens[i - size + 1 : i] == tail]
        if length < rules.min_length:
            forbidden.append(codec.end_id)
        text_scores[forbidden] = -torch.inf
    return scores


# The search as it is defined: transformers' with `early_stopping=False`


class Beam(NamedTuple):
    """A text, perhaps not at its end yet, and its score."""

    score: float
    ids: Text


def beam_search(rules: Generation, end: int) -> Search:
    """Finds texts that end with the token `end` or at the most tokens, one a beam, best first.

    Without beams it takes the likeliest token each time. A running text's score is the sum of its
    tokens', that of a found one divided by its length to the power of the penalty.
    """
    width = rules.num_beams
    beams = [Beam(0.0, ())]
    pool: list[Beam] = []
    for length in range(1, rules.max_new_tokens + 1):
        candidates = extend_beams(beams, (yield [beam.ids for beam in beams]), 2 * width)
        ended = [beam.ids[-1] == end or length == rules.max_new_tokens for beam in candidates]
        divisor = math.pow(length, rules.length_penalty)
        for beam, is_over in zip(candidates[:width], ended, strict=False):
            if is_over:
                pool.append(Beam(beam.score / divisor, beam.ids))
        pool = sorted(pool, key=lambda beam: -beam.score)[:width]
        beams = [beam for beam, is_over in zip(candidates, ended, strict=True) if not is_over][
            :width
        ]
        # transformers guesses by the length so far whether a running text may still become better.
        is_full = len(pool) == width
        if is_full and (width == 1 or not beams or beams[0].score / divisor <= pool[-1].score):
            break
    return pool


def extend_beams(beams: Sequence[Beam], scores: Tensor, count: int) -> list[Beam]:
    """At most `count` continuations of the running texts, best first."""
    totals = scores + torch.tensor([beam.score for beam in beams], device=scores.device).unsqueeze(
        1
    )
    best, indices = totals.flatten().topk(min(count, totals.numel()))
    candidates = []
    for score, index in zip(best.tolist(), indices.tolist(), strict=True):
        beam, token = divmod(index, totals.shape[1])
        candidates.append(Beam(score, (*beams[beam].ids, token)))
    return candidates
