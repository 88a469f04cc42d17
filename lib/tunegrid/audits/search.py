"""Audits that recompute generated texts and their scores without a cache.

Two searches may diverge at a tie, which rounding decides, and find different texts. If a text
differs, rounding is therefore measured with a copy of the model in fp64. The search here is written
without any library's search code.
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

# A text is "open" to the extent that it is close to losing to another text. On a quick cell,
# searching 8 texts again costs 0.2 s, 64 cost 1.4 s and all 192 cost 4 s. A single pass over 64
# costs 0.3 s and shows which texts are most open. A broken rule changes a few of the 192 texts, and
# at least one of them is nearly always in the most open tenth.
OPEN, SPREAD = 8, 4  # scored texts searched again: the most open, and evenly spread texts
CANDIDATES = 64  # evenly spread scored texts from which the most open are chosen
# The same in coarse arithmetic, where noise explains most of the texts that a broken rule changes:
# under the plant "only the best beam goes on", all of the 12 texts searched, but not all of 36.
COARSE_OPEN, COARSE_CANDIDATES = 32, 192
FEW_OPEN, FEW_CANDIDATES = 4, 32  # for true-size models, whose passes are slow
AT_ONCE = 16  # texts of a micro model searched together; larger models have large logits
# Rules that take effect in every search, since an unsure model writes long texts that win, repeats
# words, and ends early. With fewer tokens or a weaker penalty, early stopping changes none of 16
# rows; with these values it changes the beams of 5 to 11.
PROVOKED = 4  # the shortest rows, read backwards, are searched under these rules
PROVOKING = Generation(num_beams=4, no_repeat_ngram_size=2, length_penalty=6.0, max_new_tokens=28)
# Noise levels, as multiples of a text's measured rounding error. The highest exceeds 1, because the
# library's pass adds rounding errors of its own, often over more steps. Most ties are far closer
# than this noise, and noise that only decides ties leaves the rest of the search unchanged.
NOISES = (1 / 64, 1 / 16, 1 / 4, 1, 4)
# Searches per noise level. Each of two equal scores comes first in half of them. For true-size
# models, these bound the passes: eight texts, five levels and the second ask are at most
# 8 * (1 + 4 * (5 + 8)) searches of `max_new_tokens` passes, and known beginnings need none.
NOISY_SEARCHES, FEW_SEARCHES = 16, 4
ASKED_AGAIN = 8  # times as many searches at the highest level, before a text counts as wrong
MOST_COPIED = 10**9  # parameters of the largest model that is copied to fp64: 8 GB

Text = tuple[int, ...]  # the tokens of a text
# Yields N unfinished texts of equal length and receives the scores (N, V) of their next tokens, in
# nats.
Search = Generator[Sequence[Text], Tensor, "list[Beam]"]


def cache_changes_nothing(evidence: Evidence) -> Answer:
    """The library's search, which uses a cache, scores tokens as a pass without a cache does.

    The rows with the longest text and the shortest prompt are searched again in one padded batch. A
    text's score must be the sum of its tokens' scores, divided by its length to the power of the
    length penalty.
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
    if not found.total_gap <= FINE:  # whatever precision the model computes in
        detail = "the score of a text is off the sum of its tokens' for its length by"
        return Measured(
            found.total_gap, FINE
        ), f"{detail} {found.total_gap:.1e} of the largest logit"
    detail = (
        f"{len(found.texts)} texts of up to {max(map(len, found.texts))} tokens: scores differ by"
    )
    return Measured(found.gap, leeway(evidence)), f"{detail} {found.gap:.1e} of the largest logit"


def texts_are_the_models(evidence: Evidence) -> Answer:
    """For a sample of rows, the search defined here finds the texts that were scored.

    The search uses the recipe's settings and no cache. The sample contains evenly spread texts and
    the texts closest to losing to another text. In fp32, a few more rows are searched with settings
    that all take effect, and all their beams are compared; in coarser arithmetic, beams tie too
    often. True-size models would take minutes on a CPU and are skipped there.
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
    """The largest relative gap between scores that rounding can explain.

    It is larger for a 4-bit or 16-bit base and for evaluation in 16 bits.
    """
    is_fp32 = evidence.cell.quantization is None and base_type(evidence.cell) is torch.float32
    if is_fp32 and (evidence.evaluation is None or evidence.evaluation.part.precision == "fp32"):
        return FINE
    return COARSE


# Choosing the texts to search again


def choose_texts(evidence: Evidence, evaluation: Evaluation) -> list[int]:
    """Indices of the scored texts closest to losing to another text, and of evenly spread texts."""
    micro = evidence.cell.profile.micro
    if not micro:
        most_open, most = FEW_OPEN, FEW_CANDIDATES
    elif leeway(evidence) == FINE:
        most_open, most = OPEN, CANDIDATES
    else:
        most_open, most = COARSE_OPEN, COARSE_CANDIDATES
    indices = spread_indices(len(evaluation.outputs), most)
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
    chosen = ranked[:most_open] + [candidates[i] for i in spread]
    return list(dict.fromkeys(chosen))


def spread_indices(count: int, most: int) -> range:
    """At most `most` evenly spread numbers below `count`."""
    return range(0, count, max(1, math.ceil(count / most)))


def get_openness(scores: Tensor, text: Sequence[int], search: Generation) -> float:
    """The largest lead over `text` that another text could gain by branching off at some token.

    The other text is assumed to lose no score after that token. `scores` (T, V) are the
    log-probabilities of each next token. If the lead is far below 0, no other text comes close.
    """
    own_scores = token_scores(scores, text)
    tokens = torch.tensor(text, device=scores.device).unsqueeze(1)
    rivals = scores.scatter(1, tokens, -torch.inf).amax(1)
    totals = own_scores.cumsum(0)
    best = float((totals - own_scores + rivals).max())
    longest = math.pow(search.max_new_tokens, search.length_penalty)
    return best / longest - float(totals[-1]) / math.pow(len(text), search.length_penalty)


def provoke(evidence: Evidence, evaluation: Evaluation) -> list["Gap"]:
    """Searches with the library and `beam_search` under `PROVOKING`; compares all beams."""
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
    """The row with its source reversed, which makes the model unsure and its beams diverge."""
    before, after = codec.frame()
    ids = list(row.input_ids)
    source = slice(len(before), len(ids) - len(after))
    ids[source] = ids[source][::-1]
    return replace(row, input_ids=ids)


# Searching, and what rounding changes


class Gap(NamedTuple):
    """A row's texts, the texts that the search finds, and the noise that explains a difference."""

    texts: Sequence[Text]
    expected: Sequence[Text]
    noise: float  # in units of rounding; infinite if no level in `NOISES` explains the texts


class Beams:
    """Runs searches with logits computed by passes over whole texts, and stores these logits."""

    is_micro = True
    draws = 0  # noisy searches so far, each with a seed of its own

    def __init__(
        self, evidence: Evidence, rows: Sequence[Feature], texts: Sequence[Sequence[int]]
    ) -> None:
        """Computes the logits after every prefix of each row's text, in one pass over all rows.

        A search is likely to find exactly these texts.
        """
        self.evidence = evidence
        self.rows = rows
        self.texts = texts
        self.codec = evidence.text_codec
        self.is_micro = evidence.cell.profile.micro
        encoders = []
        if self.codec.start_id is not None:
            encoders = [evidence.model.get_encoder()]  # type: ignore[operator]
        encodings: list[Tensor] = []  # the encoder's output for the rows' sources
        with attach(encoders, lambda module, inputs, output: encodings.append(output[0])):
            targets = [replace(row, target=[*text]) for row, text in zip(rows, texts, strict=True)]
            self.whole = target_logits(evidence.trainer, targets)
        self.encoded = encodings[0] if encodings else None
        # The length of the tuned prompt that precedes the sources in an encoder's input.
        self.learned = encodings[0].shape[1] - longest_source(rows) if encodings else 0
        self.known: list[dict[Text, Tensor]] = [{} for _ in rows]
        for i, text in enumerate(texts):
            self.learn(i, tuple(text), self.whole[i])

    def ask(self, requests: Mapping[int, Sequence[Text]]) -> None:
        """Computes the logits after each row's unfinished texts, unless they are already known."""
        drafts = []
        for i, beginnings in requests.items():
            for ids in beginnings:
                if ids not in self.known[i]:
                    # Beams often continue as the text does, so a pass that appends the text's
                    # rest covers longer beams, too.
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
        """Stores the logits (T, V) after every prefix of a row's text."""
        for length, next_logits in enumerate(logits):
            self.known[i][text[:length]] = next_logits

    def search(
        self,
        rules: Generation,
        indices: Sequence[int],
        noise: float = 0.0,
        draw: int = 0,
    ) -> list[list["Beam"]]:
        """Runs a search for each row in `indices` and returns its finished beams, best first.

        Gaussian noise with a standard deviation of `noise` nats and the seed `draw` is added to all
        scores.
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
    """The number of tokens to which the sources of a batch are padded."""
    return max(len(row.input_ids) for row in rows)


def search_gaps(
    evidence: Evidence,
    rows: Sequence[Feature],
    rules: Generation,
    pools: Sequence[Sequence[Text]],
) -> list[Gap]:
    """Compares each row's texts in `pools` with the same number of the search's best texts."""
    gaps: list[Gap] = []
    batch_size = AT_ONCE if evidence.cell.profile.micro else 1
    for start in range(0, len(rows), batch_size):
        batch_pools = pools[start : start + batch_size]
        beams = Beams(evidence, rows[start : start + batch_size], [pool[0] for pool in batch_pools])
        found = beams.search(rules, range(len(batch_pools)))
        for i, (texts, pool) in enumerate(zip(batch_pools, found, strict=True)):
            expected = [beam.ids for beam in pool[: len(texts)]]
            # A single text that rounding does not explain is enough.
            is_open = expected != [*texts] and all(gap.noise <= NOISES[-1] for gap in gaps)
            noise = find_noise(beams, rules, i, texts) if is_open else 0.0
            gaps.append(Gap(texts, expected, noise))
    return gaps


def find_noise(beams: Beams, rules: Generation, place: int, texts: Sequence[Text]) -> float:
    """The lowest level in `NOISES` at which a search finds `texts` for a row, or infinity.

    The highest level is tried more often, since several ties in one text must fall alike.
    """
    rounding = get_rounding(beams, place)
    searches = NOISY_SEARCHES if beams.is_micro else FEW_SEARCHES
    for factor in (*NOISES, *[NOISES[-1]] * ASKED_AGAIN):
        for _ in range(searches):
            beams.draws += 1
            [pool] = beams.search(rules, [place], factor * rounding, beams.draws)
            if [beam.ids for beam in pool[: len(texts)]] == [*texts]:
                return float(factor)
    return math.inf


def get_rounding(beams: Beams, place: int) -> float:
    """The largest error of the scores along a row's text, in nats, measured against fp64.

    It is capped at `leeway` times the largest logit. A model too large to copy gets the cap.
    """
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
    return min(limit, float(errors.abs().max()))  # a larger error is a fault, not rounding


def copy_in_fp64(model: nn.Module) -> nn.Module:
    """Copies the model to fp64 and unpacks its packed layers."""
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
    """Contrasts a row's first text that the search did not find with the text found instead."""
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
    """Log-probabilities (N, V) of the next token after N unfinished texts.

    Tokens that the search forbids get minus infinity: any token that would repeat an n-gram, and
    the end token before the minimum length.
    """
    scores = logits.log_softmax(-1)
    prompt = row.input_ids if codec.start_id is None else [codec.start_id]
    size = rules.no_repeat_ngram_size
    for text_scores, ids in zip(scores, begun, strict=True):
        # Like transformers, count the decoder's start token.
        length = len(ids) + (codec.start_id is not None)
        tokens = [*prompt, *ids]
        # Indices at which n-grams end; size 0 allows any repetition.
        ends = range(size - 1, len(tokens)) if size else ()
        tail = tokens[len(tokens) - size + 1 :]
        forbidden = [tokens[i] for i in ends if tokens[i - size + 1 : i] == tail]
        if length < rules.min_length:
            forbidden.append(codec.end_id)
        text_scores[forbidden] = -torch.inf
    return scores


# The search as defined: that of transformers with `early_stopping=False`


class Beam(NamedTuple):
    """A text, possibly unfinished, and its score."""

    score: float
    ids: Text


def beam_search(rules: Generation, end: int) -> Search:
    """Finds one text per beam, best first, each ending with token `end` or at the token limit.

    With a single beam, the search takes the likeliest token at each step. An unfinished text's
    score is the sum of its tokens' scores. A finished text's score is that sum divided by the
    text's length to the power of the length penalty.
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
        # transformers guesses from the length so far whether an unfinished text can still improve.
        is_full = len(pool) == width
        if is_full and (width == 1 or not beams or beams[0].score / divisor <= pool[-1].score):
            break
    return pool


def extend_beams(beams: Sequence[Beam], scores: Tensor, count: int) -> list[Beam]:
    """The `count` best one-token extensions of the unfinished texts, best first."""
    totals = scores + torch.tensor([beam.score for beam in beams], device=scores.device).unsqueeze(
        1
    )
    best, indices = totals.flatten().topk(min(count, totals.numel()))
    candidates = []
    for score, index in zip(best.tolist(), indices.tolist(), strict=True):
        beam, token = divmod(index, totals.shape[1])
        candidates.append(Beam(score, (*beams[beam].ids, token)))
    return candidates
