"""Audits of what was asked, answered and scored: prompts, windows, texts, points, and whether anything was learned."""

import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunegrid.audits.evidence import SAMPLE, Evidence, copies, expect_none, require, sample
from tunegrid.codecs.base import Feature, alphanumeric, same_alphanumeric
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.features import chunks, get_lengths
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row, answer_texts, context, stitch
from tunegrid.data.splits import Splits
from tunegrid.grid.methods import Answer
from tunegrid.grid.recipes import Generation
from tunegrid.grid.tasks import Problem, Task
from tunegrid.record.checks import BERTSCORE, POINTS, score_faults
from tunegrid.run.build import base_type
from tunegrid.run.device import autocast
from tunegrid.run.evaluate import EVAL_BATCH, Evaluation
from tunegrid.run.metrics import METRICS, TELLING, Metrics, rouge_examples, sentence_lines, simplify, squad_examples
from tunegrid.run.probe import COARSE, FINE, attach, distance, keep_state, run_search, target_logits

ENDED_SHARE = 0.9  # of generated texts that must end by themselves
ALIKE = 0.9  # of a window's letters
MORE_THAN_LUCK = 3.0  # standard errors
RARE = 10  # rows with other targets than the most frequent one, of which a sound model may find none
LEAST_OTHERS = 0.2
SHOWN = 60  # characters of a prediction
CACHED = 12  # tokens of a text that is searched again with a cache
SEARCHED = 8  # scored texts that are searched anew
# Asks for the next token's scores (N, V) behind N begun texts of one length, in nats; minus infinity for what is forbidden.
Search = Generator[Sequence[tuple[int, ...]], Tensor, float]


def selection_apart_from_test(evidence: Evidence) -> Answer:
    """No row that chose among epochs is scored."""
    rows, test_rows = evidence.trainer.chosen_on, require(evidence.evaluation, Evaluation).rows
    return expect_none(copies(evidence.cell, rows, test_rows), f"{len(rows)} rows chose the epoch", "scored") if rows else None


def prompt_intact_at_inference(evidence: Evidence) -> Answer:
    """What frames the input survives truncation: special tokens, the prefix, a separator, a chat template."""
    prompts = [feature.input_ids for feature in require(evidence.evaluation, Evaluation).features]
    (begin, end), limit = evidence.codec.frame(), evidence.cell.recipe.max_length
    has_frame = [ids[: len(begin)] == begin and ids[len(ids) - len(end) :] == end for ids in prompts]
    faults = [i for i, ids in enumerate(prompts) if not has_frame[i] or len(ids) > limit]
    detail = f"{len(prompts)} prompts, {len(begin)} tokens before and {len(end)} after"
    return expect_none(faults, detail, "lack their frame or are too long")


def windows_map_to_examples(evidence: Evidence) -> Answer:
    """Every row has windows, and a window's tokens are its row's context."""
    codec, evaluation = require(evidence.codec, ExtractCodec), require(evidence.evaluation, Evaluation)
    rows, features = evaluation.rows, evaluation.features

    def shows_its_row(feature: Feature) -> bool:
        window = codec.window(rows[feature.example], feature)
        if window is None or same_alphanumeric(*window, codec.tokenizer.unk_token):
            return True
        # A tokenizer may lose letters beyond ASCII; contexts of two rows have hardly a line in common.
        return SequenceMatcher(None, alphanumeric(window[0]), alphanumeric(window[1]), autojunk=False).ratio() > ALIKE

    texts = [f"window of row {feature.example}" for feature in sample(features, 2 * SAMPLE) if not shows_its_row(feature)]
    texts += [f"none of row {row}" for row in sorted(set(range(len(rows))).difference(feature.example for feature in features))]
    return expect_none(texts, f"{len(features)} windows of {len(rows)} rows", "show another row's context or are missing")


def generation_not_truncated(evidence: Evidence) -> Answer:
    """Generated texts end by themselves, nearly all of them, not at the limit of tokens."""
    codec, outputs = require(evidence.codec, GenerateCodec), require(evidence.evaluation, Evaluation).outputs  # type: ignore[type-abstract]
    lengths, share = [len(ids) for ids in outputs], fmean(map(codec.has_end, outputs))
    return share >= ENDED_SHARE, f"{share:.0%} ended, {min(lengths)} to {max(lengths)} tokens, {fmean(lengths):.1f} on average"


def metric_invariants(evidence: Evidence) -> Answer:
    """What these metrics satisfy whatever is predicted, and some rows scored again: on each row, on average, and in number."""
    evaluation, task = require(evidence.evaluation, Evaluation), evidence.cell.task
    examples, scores, count = evaluation.examples, evaluation.scores, len(evaluation.rows)
    faults = [f"{name} has {len(points)} points for {count} rows" for name, points in examples.items() if len(points) != count]
    pairs = zip(evaluation.predictions, evaluation.rows, strict=True) if "exact_match" in examples else ()
    # By SQuAD v1.1's rules an answer and a truth that both normalize to nothing, as "a" and "the", have EM 100 and F1 0.
    blank = [not simplify(str(p.value)) and not all(map(simplify, answer_texts(task, row))) for p, row in pairs]
    faults += score_faults(scores, empty_answers=100 * sum(blank) / count)
    faults += [
        f"{name} {scores[name]:.2f} is not the mean {fmean(points):.2f} of its rows"
        for name, points in examples.items()
        if not math.isclose(scores[name], fmean(points), abs_tol=0.01)
    ]
    values = [] if faults else [prediction.value for prediction in evaluation.predictions]
    for i in sorted(sample(range(len(values)), 2 * SAMPLE if task.problem is Problem.GENERATE else len(values))):
        for name, [points] in ALONE[task.problem](task, evaluation.rows[i], values[i]).items():
            if not math.isclose(examples[name][i], points, abs_tol=0.01):
                faults.append(f"{name} of row {i} is {examples[name][i]:.2f}, but its prediction scores {points:.2f}")
    faults += [
        f"bertscore_f1 is outside precision and recall on row {row}"
        for row, (p, f1, r) in enumerate(zip(*(examples.get(name, ()) for name in BERTSCORE), strict=True))
        if not min(p, r) - POINTS <= f1 <= max(p, r) + POINTS  # a harmonic mean
    ]
    return not faults, faults[0] if faults else f"{count} rows, {len(examples)} metrics"


# The points of one row by itself. BERTScore is left out: its encoder is gone by now.
ALONE: dict[Problem, Callable[[Task, Row, Any], dict[str, list[float]]]] = {
    Problem.CLASSIFY: lambda task, row, value: {"accuracy": [100.0 * (value == row[task.target])]},
    Problem.EXTRACT: lambda task, row, value: squad_examples([answer_texts(task, row)], [value]),
    Problem.GENERATE: lambda task, row, value: rouge_examples([row[task.target]], [sentence_lines(value)]),
}


def predictions_not_collapsed(evidence: Evidence) -> Answer:
    """Predictions are not one class, answer or text for nearly all rows, if targets are many.

    Rows with another prediction than the most frequent one are at least a fifth of those with another target than the most
    frequent one. A model that finds a rare class in every second row is far from that, one that always says the same at 0.
    """
    task, evaluation = evidence.cell.task, require(evidence.evaluation, Evaluation)
    rows, ((_, target_count), (prediction, prediction_count)) = len(evaluation.rows), most_frequent(task, evaluation)
    if rows - target_count < RARE:
        return None
    text = task.labels[prediction] if task.labels else prediction[:SHOWN]
    detail = f"{prediction_count} of {rows} predictions are {text!r}; the most frequent target occurs in {target_count} rows"
    return rows - prediction_count >= LEAST_OTHERS * (rows - target_count), detail


def learned_something(evidence: Evidence) -> tuple[bool, str, Mapping[str, float]]:
    """Better than any answer that needs no model, and no worse than the untrained model, by three standard errors.

    A checkpoint may know the task before training, as T5's knows SQuAD: then a healthy run need not gain anything.
    """
    evaluation, splits, task = require(evidence.evaluation, Evaluation), require(evidence.splits, Splits), evidence.cell.task
    rows, name, reader = evaluation.rows, TELLING[task.problem], READ_OFF.get(task.problem)
    answers = [[constant] * len(rows) for constant in {answer for answer, _ in most_frequent(task, evaluation)}]
    answers += [reader(task, splits.train, rows)] if reader else []
    baselines = [METRICS[task.problem](Metrics(), task, rows, guesses) for guesses in answers]
    points, baseline_points = evaluation.examples[name], max((baseline.examples[name] for baseline in baselines), key=fmean)
    gain, error = mean_difference(points, baseline_points)
    passed, detail = gain > MORE_THAN_LUCK * error, f"{name} {fmean(points):.1f}, without a model {fmean(baseline_points):.1f}"
    detail += f", standard error {error:.1f}"
    if start := evidence.trainer.log.first_step.get("untrained"):
        final = points[: len(start)]
        gain, error = mean_difference(final, start)
        passed = passed and gain > -MORE_THAN_LUCK * error
        detail += f"; on {len(start)} rows {fmean(final):.1f}, before training {fmean(start):.1f}, standard error {error:.1f}"
    best = {metric: max(baseline.scores[metric] for baseline in baselines) for metric in baselines[0].scores}
    return passed, detail, best


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """By how many points the same rows score better, and the standard error of it.

    Half a row is added that gains all points, half a row that loses them, and one that does neither (Agresti and Min 2005): the
    error is not 0, though nearly all rows agree.
    """
    gains = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean = sum(gains) / (len(gains) + 2)
    return mean, math.sqrt(((sum(gain**2 for gain in gains) + 100**2) / (len(gains) + 2) - mean**2) / (len(gains) + 2))


def most_frequent(task: Task, evaluation: Evaluation) -> list[tuple[Any, int]]:
    """The most frequent target and the most frequent prediction, each with its number of rows."""
    targets = [answer_texts(task, row)[0] if task.problem is Problem.EXTRACT else row[task.target] for row in evaluation.rows]
    return [Counter(values).most_common(1)[0] for values in (targets, [one.value for one in evaluation.predictions])]


def random_span(task: Task, train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    """As many words as answers have on average, from a random place of the context."""
    rng = Random(0)
    length = max(1, round(fmean(len(answer_texts(task, row)[0].split()) for row in train)))
    contexts = [context(task, row).split() for row in test]
    starts = [rng.randrange(max(1, len(words) - length + 1)) for words in contexts]
    return [" ".join(words[start : start + length]) for words, start in zip(contexts, starts, strict=True)]


def lead_sentence(task: Task, train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    """The first sentence of the text."""
    return [re.split(r"(?<=[.!?])\s+|\n", stitch(row, task.text).strip(), maxsplit=1)[0] for row in test]


# An answer read off the text. By problem, not by codec: an answer is held against the same baseline, be it a span or generated.
READ_OFF: dict[Problem, Callable[[Task, Sequence[Row], Sequence[Row]], list[str]]] = {
    Problem.EXTRACT: random_span,
    Problem.GENERATE: lead_sentence,
}


# Scored rows once more


def scored_rows(evaluation: Evaluation) -> list[int]:
    """The shortest feature, the last and so most padded one of the first batch, and the longest."""
    lengths = get_lengths(evaluation.features)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    last = len(order) - 1
    return [order[index] for index in dict.fromkeys((last, min(EVAL_BATCH - 1, last), 0))]


def scored_alone_as_in_batch(evidence: Evidence) -> Answer:
    """A scored row, answered again alone, has the scores that it was answered by in its batch."""
    evaluation, codec, device = require(evidence.evaluation, Evaluation), evidence.codec, evidence.device
    if codec.generates:
        return None
    batch_scores: list[float] = []
    lone_scores: list[float] = []
    with torch.no_grad(), keep_state(evidence.trainer), autocast(evaluation.part.precision or "fp32", device):
        for i in scored_rows(evaluation):
            batch_scores += codec.scores(evaluation.outputs[i])
            lone_scores += codec.scores(codec.predict(evidence.model, [evaluation.features[i]], device)[0])
    if not batch_scores:
        return None
    gap = distance(torch.tensor(batch_scores), torch.tensor(lone_scores))
    return gap <= _leeway(evidence), f"{len(scored_rows(evaluation))} rows: scores differ by {gap:.1e} of the largest"


def cache_changes_nothing(evidence: Evidence) -> Answer:
    """Searched again as scored texts were, with a cache, all beams' scores are those of whole texts in one pass without it.

    The longest text and the shortest prompt, which is padded, show it in their first tokens. A cache that goes wrong later may
    show in the text that `texts_are_the_models` computes anew.
    """
    codec, evaluation = require(evidence.codec, GenerateCodec), evidence.evaluation  # type: ignore[type-abstract]
    rows: Sequence[Feature] = evidence.probe.rows
    if evaluation is not None:
        longest = max(range(len(evaluation.outputs)), key=lambda i: len(evaluation.outputs[i]))
        rows = [evaluation.features[i] for i in dict.fromkeys((longest, scored_rows(evaluation)[0]))]
    texts, gap = run_search(evidence.trainer, rows, max_new_tokens=min(CACHED, codec.generation.max_new_tokens))
    detail = f"{len(texts)} texts of up to {max(map(len, texts))} tokens"
    return gap <= _leeway(evidence), f"{detail}: scores differ by {gap:.1e} of the largest logit"


def texts_are_the_models(evidence: Evidence) -> Answer:
    """A scored text is what the recipe's search finds, computed anew: alone, without a cache, beams included.

    Some texts are searched side by side, which costs up to one pass per token, each over as many whole texts as there are
    beams: on a CPU, minutes for a model of true size, whose texts are left alone; on a GPU, such texts take turns.
    """
    codec, evaluation = require(evidence.codec, GenerateCodec), require(evidence.evaluation, Evaluation)  # type: ignore[type-abstract]
    if evidence.device.type == "cpu" and not evidence.cell.profile.micro:
        return None
    spread = range(0, len(evaluation.outputs), math.ceil(len(evaluation.outputs) / SEARCHED))
    pairs = [(evaluation.features[i], evaluation.outputs[i]) for i in spread if evaluation.outputs[i]]
    if not pairs:
        return None
    batch_size = SEARCHED if evidence.cell.profile.micro else 1  # one text's logits are as many as a vocabulary is large
    with torch.no_grad(), keep_state(evidence.trainer):
        gaps = [gap for batch in chunks(pairs, batch_size) for gap in _search_gaps(evidence, codec, batch)]
    worst_gap = max(gaps, key=lambda gap: (math.isnan(gap), gap))
    return worst_gap <= _leeway(evidence), f"{len(pairs)} texts: below the best by {worst_gap:.1e} of the largest logit"


def _search_gaps(evidence: Evidence, codec: GenerateCodec, pairs: Sequence[tuple[Feature, Sequence[int]]]) -> list[float]:
    """How far off a search must be to find each of these rows' texts, in units of the text's largest logit."""
    encoders = [] if codec.start_id is None else [evidence.model.get_encoder()]  # type: ignore[operator]
    encodings: list[Tensor] = []  # what an encoder made of the rows' sources
    with attach(encoders, lambda module, inputs, output: encodings.append(output[0])):
        outputs = target_logits(evidence.trainer, [replace(row, target=[*text]) for row, text in pairs])
    # Of the next token, by what is begun of each text.
    cache = [{tuple(text[:i]): one for i, one in enumerate(logits)} for (_, text), logits in zip(pairs, outputs, strict=True)]
    searches = [shortfall(text, codec.generation, codec.end_id) for _, text in pairs]
    requests, gaps = {i: next(search) for i, search in enumerate(searches)}, [0.0] * len(pairs)
    while requests:
        # Beams often go on as the text does: asked with the rest of it, a pass knows their longer beginnings, too.
        new_texts = [(i, ids) for i, beginnings in requests.items() for ids in beginnings if ids not in cache[i]]
        drafts = [(i, (*ids, *(pairs[i][1][len(ids) :] or [codec.end_id]))) for i, ids in new_texts]
        batch, sources = [replace(pairs[i][0], target=[*draft]) for i, draft in drafts], [i for i, _ in drafts]
        answers = target_logits(evidence.trainer, batch, encodings[0][sources] if encodings else None) if batch else []
        for (i, draft), logits in zip(drafts, answers, strict=True):
            cache[i].update((draft[:length], one) for length, one in enumerate(logits))
        for i, beginnings in [*requests.items()]:
            scores = allowed_scores(codec, pairs[i][0], torch.stack([cache[i][ids] for ids in beginnings]), beginnings)
            try:
                requests[i] = searches[i].send(scores)
            except StopIteration as end:
                gaps[i] = end.value / float(outputs[i].abs().max())
                del requests[i]
    return gaps


def allowed_scores(codec: GenerateCodec, row: Feature, logits: Tensor, begun: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities (N, V) of the next token behind N begun texts; minus infinity for what the recipe's search forbids.

    Those are tokens that repeat an n-gram, and the end before its least length.
    """
    scores, search = logits.log_softmax(-1), codec.generation
    prompt = row.input_ids if codec.start_id is None else [codec.start_id]
    for text_scores, ids in zip(scores, begun, strict=True):
        length = len(ids) + (codec.start_id is not None)  # transformers counts an encoder-decoder's start token
        tokens, size = [*prompt, *ids], search.no_repeat_ngram_size
        ends = range(size - 1, len(tokens)) if size else ()  # of an n-gram; for size 0 any may stand twice
        tail = tokens[len(tokens) - size + 1 :]
        repeats = [tokens[i] for i in ends if tokens[i - size + 1 : i] == tail]
        text_scores[[*repeats, *([codec.end_id] if length < search.min_length else [])]] = -torch.inf
    return scores


def _leeway(evidence: Evidence) -> float:
    """How far rounding may take scores apart: a base in 4 bits or 16 is coarse, and so is evaluation in bf16."""
    is_fp32 = evidence.cell.quantization is None and base_type(evidence.cell) is torch.float32
    return FINE if is_fp32 and (evidence.evaluation is None or evidence.evaluation.part.precision == "fp32") else COARSE


# The search as it is defined, with none of a library's code: transformers' with `early_stopping=False`


class Beam(NamedTuple):
    """A text, perhaps not at its end yet, and the sum of its tokens' scores."""

    score: float
    ids: tuple[int, ...]


def shortfall(text: Sequence[int], search: Generation, end: int) -> Search:
    """How many nats a search would have to be off, at most in one of its decisions, to find this text; 0 if it does find it.

    The text has the token `end`, or is as long as the search lets one be. A search without beams knows no penalty.
    """

    def is_over(beam: Beam) -> bool:
        return beam.ids[-1] == end or len(beam.ids) == search.max_new_tokens

    penalty, width = search.length_penalty if search.num_beams > 1 else 0.0, search.num_beams
    beams, scores, gaps, text_score = [Beam(0.0, ())], list[float](), [0.0], None  # finished texts by their score for a length
    for length in range(1, search.max_new_tokens + 1):
        prefix, divisor = tuple(text[:length]) if text_score is None else (), math.pow(length, penalty)
        candidates, text_beam = _extend_beams(beams, (yield [beam.ids for beam in beams]), 2 * width, prefix)
        ended_beams = [beam for beam in candidates[:width] if is_over(beam)]
        beams = [beam for beam in candidates if not is_over(beam)][:width]
        if text_beam:
            text_score = text_beam.score / divisor if is_over(text_beam) else None
            rivals, weakest = (beams, beams[-1]) if text_score is None else (ended_beams, candidates[width - 1])
            if text_beam not in rivals:  # it misses its place by so much, and takes that of the last one
                gaps.append(weakest.score - text_beam.score)
                rivals[:] = [*rivals[: width - 1], text_beam]
        scores = sorted([*scores, *(beam.score / divisor for beam in ended_beams)], reverse=True)[:width]
        best = beams[0].score / divisor if beams else -math.inf
        # transformers guesses by the length so far whether a running text may still become better.
        if len(scores) < width or (width > 1 and best > scores[-1]):
            continue
        if text_score is not None:
            break
        gaps.append((scores[-1] - best) * divisor)  # the search ends, and the text has not
    if text_score is None:
        return math.inf
    return max(gaps) if width == 1 else max(*gaps, (scores[0] - text_score) * math.pow(len(text), penalty))


def _extend_beams(beams: Sequence[Beam], scores: Tensor, count: int, prefix: tuple[int, ...]) -> tuple[list[Beam], Beam | None]:
    """So many continuations of the running texts, best first, and the one that is `prefix`, however good it is."""
    totals = scores + torch.tensor([beam.score for beam in beams], device=scores.device).unsqueeze(1)
    best, indices = totals.flatten().topk(min(count, totals.numel()))
    pairs = [(score, *divmod(index, totals.shape[1])) for score, index in zip(best.tolist(), indices.tolist(), strict=True)]
    candidates = [Beam(score, (*beams[beam].ids, token)) for score, beam, token in pairs]
    parent = next((i for i, beam in enumerate(beams) if prefix and beam.ids == prefix[:-1]), None)
    return candidates, None if parent is None else Beam(float(totals[parent, prefix[-1]]), prefix)
