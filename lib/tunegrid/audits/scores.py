"""Audits of scored rows: prompts, windows, texts, scores, and whether the model learned."""

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from random import Random
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer

from tunegrid.audits.evidence import SAMPLE, Evidence, copies, expect_none, require, sample
from tunegrid.audits.fixed_points import wrong_points
from tunegrid.audits.search import leeway
from tunegrid.codecs.base import Codec, alphanumeric, same_alphanumeric
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.features import get_lengths
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row, answer_texts, context, stitch
from tunegrid.grid.methods import Answer, Measured
from tunegrid.grid.recipes import EVAL_BATCH
from tunegrid.grid.tasks import Problem, Task
from tunegrid.record.checks import BERTSCORE, POINTS, score_faults
from tunegrid.run.device import autocast
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.metrics import (
    METRICS,
    TELLING,
    Metrics,
    rouge_examples,
    sentence_lines,
    simplify,
    squad_examples,
)
from tunegrid.run.probe import distance, keep_state
from tunegrid.words import contrast

ENDED_SHARE = 0.9  # share of generated texts that must end by themselves
ALIKE = 0.9  # difflib's ratio that the letters of a window and its context must exceed
MORE_THAN_LUCK = 3.0  # standard errors that a difference must exceed
# Collapse is judged only if this many rows have a target that is not the most frequent one; a sound
# model may recognize none of fewer rows.
RARE = 10
LEAST_OTHERS = 0.2
SHOWN = 60  # characters shown of a prediction
ENCODED = 200  # scored rows, evenly spread, that are encoded again


def selection_apart_from_test(evidence: Evidence) -> Answer:
    """No row that helped to choose among epochs is scored."""
    rows, test_rows = evidence.trainer.chosen_on, evidence.scored.rows
    if not rows:
        return None
    scored_indices = copies(evidence.cell, rows, test_rows)
    return expect_none(scored_indices, f"{len(rows)} rows chose the epoch", "scored")


def prompt_intact_at_inference(evidence: Evidence) -> Answer:
    """Prompts keep their frame, fit the length limit, and do not depend on batching.

    The frame surrounds the text: special tokens, a prefix, a separator or a chat template. Up to
    `ENCODED` rows are encoded again, one by one, and must give the tokens that were scored.
    """
    evaluation = evidence.scored
    begin, end = evidence.codec.frame()
    limit = evidence.cell.recipe.max_length
    faults = []
    for i, feature in enumerate(evaluation.features):
        ids = feature.input_ids
        has_frame = ids[: len(begin)] == begin and ids[len(ids) - len(end) :] == end
        if not has_frame or len(ids) > limit:
            faults.append(i)
    detail = f"{len(evaluation.features)} prompts, {len(begin)} tokens before and {len(end)} after"
    if faults:
        return expect_none(faults, detail, "lack their frame or are too long")
    misread = misread_rows(evidence.codec, evaluation)
    return expect_none(misread, detail, "have other tokens than their rows alone")


def misread_rows(codec: Codec, evaluation: Evaluation) -> list[str]:
    """Describes the rows, of at most `ENCODED`, whose tokens change if they are encoded alone."""
    # Tokenizers written in Python encode one text at a time anyway.
    if getattr(codec.tokenizer, "backend_tokenizer", None) is None:
        return []
    tokens: dict[int, list[list[int]]] = {}
    for feature in evaluation.features:
        tokens.setdefault(feature.example, []).append(feature.input_ids)
    lone_codec = copy.copy(codec)
    lone_codec.tokenizer = LoneTokenizer(codec.tokenizer)
    step = math.ceil(len(evaluation.rows) / ENCODED)
    faults = []
    for i in range(0, len(evaluation.rows), step):
        features = lone_codec.encode([evaluation.rows[i]], training=False)
        expected = [feature.input_ids for feature in features]
        windows = tokens.get(i, [])
        if windows != expected:
            faults.append(f"row {i} with {sum(map(len, windows))} for {sum(map(len, expected))}")
    return faults


class LoneTokenizer:
    """A tokenizer that encodes one text at a time.

    It bypasses transformers with a copy of the tokenizer's backend, without truncation or padding.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Copies the tokenizer's backend; the tokenizer provides all other attributes."""
        self._tokenizer = tokenizer
        self._file = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._file.no_truncation()
        self._file.no_padding()

    def __getattr__(self, name: str) -> Any:
        """Looks up an attribute of the original tokenizer."""
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        """The size of the tokenizer's vocabulary."""
        return len(self._tokenizer)

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[Any]]:
        """Returns the token ids and offsets of each text, without special tokens."""
        encoded = [self._file.encode(text, add_special_tokens=False) for text in texts]
        return {
            "input_ids": [tokens.ids for tokens in encoded],
            "offset_mapping": [tokens.offsets for tokens in encoded],
        }


def windows_map_to_examples(evidence: Evidence) -> Answer:
    """Every row has a window, and the tokens of sampled windows come from their row's context."""
    codec, evaluation = require(evidence.codec, ExtractCodec), evidence.scored
    rows, features = evaluation.rows, evaluation.features
    faults = []
    for feature in sample(features, 2 * SAMPLE):
        window = codec.window(rows[feature.example], feature)
        if window is None or same_alphanumeric(*window, codec.tokenizer.unk_token):
            continue
        # A tokenizer may lose non-ASCII letters. Contexts of different rows hardly share a line.
        text, context_text = map(alphanumeric, window)
        if SequenceMatcher(None, text, context_text, autojunk=False).ratio() <= ALIKE:
            faults.append(f"window of row {feature.example}")
    missing_rows = set(range(len(rows))).difference(feature.example for feature in features)
    faults += [f"none of row {row}" for row in sorted(missing_rows)]
    detail = f"{len(features)} windows of {len(rows)} rows"
    return expect_none(faults, detail, "show another row's context or are missing")


def generation_not_truncated(evidence: Evidence) -> Answer:
    """Nearly all generated texts end with an end token instead of reaching the token limit."""
    codec = evidence.text_codec
    outputs = evidence.scored.outputs
    lengths = [len(ids) for ids in outputs]
    share = fmean(map(codec.has_end, outputs))
    tokens = f"{min(lengths)} to {max(lengths)} tokens, {fmean(lengths):.1f} on average"
    return share >= ENDED_SHARE, f"{share:.0%} ended, {tokens}"


def metric_invariants(evidence: Evidence) -> Answer:
    """Scores are possible and match the rows' points; a row's points depend on no other row.

    Rows, or a sample of generated texts, are scored again one by one. Fixed predictions must get
    the scores worked out by hand, and generated texts must be what their tokens decode to.
    """
    evaluation, task = evidence.scored, evidence.cell.task
    count = len(evaluation.rows)
    faults = [*impossible_scores(task, evaluation)]
    if not faults:
        faults += other_points(task, evaluation)
    bertscores = zip(*(evaluation.examples.get(name, ()) for name in BERTSCORE), strict=True)
    for i, (precision, f1, recall) in enumerate(bertscores):
        # F1 is a harmonic mean, so it lies between precision and recall.
        if not min(precision, recall) - POINTS <= f1 <= max(precision, recall) + POINTS:
            faults.append(f"bertscore_f1 is outside precision and recall on row {i}")
    faults += wrong_points(task.problem)
    faults += wrong_texts(evidence.codec, evaluation)
    if faults:
        return False, faults[0]
    return True, f"{count} rows, {len(evaluation.examples)} metrics"


def impossible_scores(task: Task, evaluation: Evaluation) -> Iterator[str]:
    """Yields a sentence for each score that is impossible or not the mean of its rows' points."""
    examples, scores, count = evaluation.examples, evaluation.scores, len(evaluation.rows)
    for name, points in examples.items():
        if len(points) != count:
            yield f"{name} has {len(points)} points for {count} rows"
    blank = 0
    if "exact_match" in examples:
        # By SQuAD v1.1's rules, an answer and a truth that are both nothing but articles, such as
        # "a" and "the", have an exact match of 100 and an F1 of 0.
        for prediction, row in zip(evaluation.predictions, evaluation.rows, strict=True):
            is_blank = not simplify(str(prediction.value))
            blank += is_blank and not all(map(simplify, answer_texts(task, row)))
    yield from score_faults(scores, empty_answers=100 * blank / count)
    for name, points in examples.items():
        if not math.isclose(scores[name], fmean(points), abs_tol=0.01):
            yield f"{name} {scores[name]:.2f} is not the mean {fmean(points):.2f} of its rows"


def other_points(task: Task, evaluation: Evaluation) -> Iterator[str]:
    """Yields a sentence for each score of a row that differs if the row is scored alone.

    Only a sample of generated texts is scored.
    """
    indices: Iterable[int] = range(len(evaluation.rows))
    if task.problem is Problem.GENERATE:
        indices = sorted(sample(range(len(evaluation.rows)), 2 * SAMPLE))
    for i in indices:
        row = evaluation.rows[i]
        lone_points = ALONE[task.problem](task, row, evaluation.predictions[i].value)
        for name, [points] in lone_points.items():
            scored = evaluation.examples[name][i]
            if not math.isclose(scored, points, abs_tol=0.01):
                yield f"{name} of row {i} is {scored:.2f}, but its prediction scores {points:.2f}"


def wrong_texts(codec: Codec, evaluation: Evaluation) -> Iterator[str]:
    """Yields a sentence for each generated text that is not what its tokens decode to."""
    if not isinstance(codec, GenerateCodec) or type(codec).decode is not GenerateCodec.decode:
        return
    for i, prediction in enumerate(evaluation.predictions):
        text = codec.decode_alone(evaluation.outputs[i])
        if text is not None and text != prediction.value:
            yield f"the text of row {i} is decoded as {contrast(prediction.value, text)}"


# Functions that score one row. BERTScore is omitted because its encoder is no longer in memory.
ALONE: dict[Problem, Callable[[Task, Row, Any], dict[str, list[float]]]] = {
    Problem.CLASSIFY: lambda task, row, value: {"accuracy": [100.0 * (value == row[task.target])]},
    Problem.EXTRACT: lambda task, row, value: squad_examples([answer_texts(task, row)], [value]),
    Problem.GENERATE: lambda task, row, value: rouge_examples(
        [row[task.target]], [sentence_lines(value)]
    ),
}


def predictions_not_collapsed(evidence: Evidence) -> Answer:
    """Predictions are not nearly all the same class, answer or text when targets vary.

    The number of predictions that differ from the most frequent one must be at least a fifth of the
    number of targets that differ from the most frequent target. A model that recognizes half of a
    rare class's rows is well above that; a constant answer is at 0.
    """
    task, evaluation = evidence.cell.task, evidence.scored
    rows = len(evaluation.rows)
    (_, target_count), (prediction, prediction_count) = most_frequent(task, evaluation)
    if rows - target_count < RARE:
        return None
    text = task.labels[prediction] if task.labels else prediction[:SHOWN]
    predicted = f"{prediction_count} of {rows} predictions are {text!r}"
    is_sound = rows - prediction_count >= LEAST_OTHERS * (rows - target_count)
    return is_sound, f"{predicted}; the most frequent target occurs in {target_count} rows"


def learned_something(evidence: Evidence) -> tuple[bool, str, Mapping[str, float]]:
    """Scores beat the best answers that need no model, and are no worse than before training.

    Gains and drops count if they exceed three standard errors. A healthy run need not improve on
    its checkpoint, which may already have learned the task, as T5's has learned SQuAD.
    """
    task, evaluation = evidence.cell.task, evidence.scored
    train_rows = evidence.train_rows
    rows, name = evaluation.rows, TELLING[task.problem]
    constants = {answer for answer, _ in most_frequent(task, evaluation)}
    answers = [[constant] * len(rows) for constant in constants]
    if task.problem in READ_OFF:
        answers.append(READ_OFF[task.problem](task, train_rows, rows))
    baselines = [METRICS[task.problem](Metrics(), task, rows, guesses) for guesses in answers]
    points = evaluation.examples[name]
    baseline_points = max((baseline.examples[name] for baseline in baselines), key=fmean)
    gain, error = mean_difference(points, baseline_points)
    passed = gain > MORE_THAN_LUCK * error
    detail = f"{name} {fmean(points):.1f}; the best answer without a model scores "
    detail += f"{fmean(baseline_points):.1f} (standard error {error:.1f})"
    start = evidence.trainer.log.first_step.get("untrained")
    if start:
        final = points[: len(start)]
        gain, error = mean_difference(final, start)
        passed = passed and gain > -MORE_THAN_LUCK * error
        detail += f"; {len(start)} rows: {fmean(start):.1f} before training and {fmean(final):.1f}"
        detail += f" after (standard error {error:.1f})"
    best = {}
    for metric in baselines[0].scores:
        best[metric] = max(baseline.scores[metric] for baseline in baselines)
    return passed, detail, best


def mean_difference(points: Sequence[float], other_points: Sequence[float]) -> tuple[float, float]:
    """The mean gain of `points` over `other_points` of the same rows, and its standard error.

    Two rows are added (Agresti and Min 2005): half a row gains all points, half a row loses all
    points, and one row does neither. The error is therefore positive even if all rows agree.
    """
    gains = [after - before for after, before in zip(points, other_points, strict=True)]
    count = len(gains) + 2
    mean = sum(gains) / count
    mean_square = (sum(gain**2 for gain in gains) + 100**2) / count
    return mean, math.sqrt((mean_square - mean**2) / count)


def most_frequent(task: Task, evaluation: Evaluation) -> list[tuple[Any, int]]:
    """The most frequent target and the most frequent prediction, each with its row count."""
    targets = [row[task.target] for row in evaluation.rows]
    if task.problem is Problem.EXTRACT:
        targets = [target["text"][0] for target in targets]
    predictions = [prediction.value for prediction in evaluation.predictions]
    return [Counter(values).most_common(1)[0] for values in (targets, predictions)]


def random_span(task: Task, train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    """A span from a random position in each context, as long as the average training answer."""
    rng = Random(0)
    length = max(1, round(fmean(len(answer_texts(task, row)[0].split()) for row in train)))
    spans = []
    for row in test:
        words = context(task, row).split()
        start = rng.randrange(max(1, len(words) - length + 1))
        spans.append(" ".join(words[start : start + length]))
    return spans


def lead_sentence(task: Task, train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    """The first sentence of each text."""
    texts = [stitch(row, task.text).strip() for row in test]
    return [re.split(r"(?<=[.!?])\s+|\n", text, maxsplit=1)[0] for text in texts]


# Answers read off the text, by problem.
READ_OFF: dict[Problem, Callable[[Task, Sequence[Row], Sequence[Row]], list[str]]] = {
    Problem.EXTRACT: random_span,
    Problem.GENERATE: lead_sentence,
}


# Scored rows, predicted again


def scored_rows(evaluation: Evaluation) -> list[int]:
    """Indices of up to three features: the shortest, the last of the first batch, and the longest.

    The last feature of a batch has the most padding.
    """
    lengths = get_lengths(evaluation.features)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    last = len(order) - 1
    return [order[index] for index in dict.fromkeys((last, min(EVAL_BATCH - 1, last), 0))]


def scored_alone_as_in_batch(evidence: Evidence) -> Answer:
    """A few scored features get the same scores alone as they got in their batches."""
    evaluation, codec, device = evidence.scored, evidence.codec, evidence.device
    if codec.generates:
        return None
    batch_scores: list[float] = []
    lone_scores: list[float] = []
    precision = evaluation.part.precision or "fp32"
    with torch.no_grad(), keep_state(evidence.trainer), autocast(precision, device):
        for i in scored_rows(evaluation):
            batch_scores += codec.scores(evaluation.outputs[i])
            [output] = codec.predict(evidence.model, [evaluation.features[i]], device)
            lone_scores += codec.scores(output)
    if not batch_scores:
        return None
    gap = distance(torch.tensor(batch_scores), torch.tensor(lone_scores))
    rows = f"{len(scored_rows(evaluation))} rows"
    return Measured(gap, leeway(evidence)), f"{rows}: scores differ by {gap:.1e} of the largest"
