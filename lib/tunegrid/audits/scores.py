"""Audits of what was asked, answered and scored: prompts, windows, texts, points, and whether anything was learned."""

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from random import Random
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer

from tunegrid.audits.evidence import SAMPLE, Evidence, copies, expect_none, require, sample
from tunegrid.audits.fixed_points import wrong_points
from tunegrid.audits.search import leeway
from tunegrid.codecs.base import Codec, Feature, alphanumeric, same_alphanumeric
from tunegrid.codecs.extract import ExtractCodec
from tunegrid.codecs.features import get_lengths
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row, answer_texts, context, stitch
from tunegrid.data.splits import Splits
from tunegrid.grid.methods import Answer, Measured
from tunegrid.grid.tasks import Problem, Task
from tunegrid.record.checks import BERTSCORE, POINTS, score_faults
from tunegrid.run.device import autocast
from tunegrid.run.evaluate import EVAL_BATCH, Evaluation
from tunegrid.run.metrics import METRICS, TELLING, Metrics, rouge_examples, sentence_lines, simplify, squad_examples
from tunegrid.run.probe import distance, keep_state
from tunegrid.words import contrast

ENDED_SHARE = 0.9  # of generated texts that must end by themselves
ALIKE = 0.9  # of a window's letters
MORE_THAN_LUCK = 3.0  # standard errors
RARE = 10  # rows with other targets than the most frequent one, of which a sound model may find none
LEAST_OTHERS = 0.2
SHOWN = 60  # characters of a prediction
ENCODED = 200  # scored rows that are encoded once more, evenly spread


def selection_apart_from_test(evidence: Evidence) -> Answer:
    """No row that chose among epochs is scored."""
    rows, test_rows = evidence.trainer.chosen_on, require(evidence.evaluation, Evaluation).rows
    return expect_none(copies(evidence.cell, rows, test_rows), f"{len(rows)} rows chose the epoch", "scored") if rows else None


def prompt_intact_at_inference(evidence: Evidence) -> Answer:
    """What frames the input survives truncation: special tokens, the prefix, a separator, a chat template.

    And scored rows, encoded once more each by itself, have the tokens that were scored: all of their text.
    """
    evaluation = require(evidence.evaluation, Evaluation)
    prompts = [feature.input_ids for feature in evaluation.features]
    (begin, end), limit = evidence.codec.frame(), evidence.cell.recipe.max_length
    has_frame = [ids[: len(begin)] == begin and ids[len(ids) - len(end) :] == end for ids in prompts]
    faults = [i for i, ids in enumerate(prompts) if not has_frame[i] or len(ids) > limit]
    detail = f"{len(prompts)} prompts, {len(begin)} tokens before and {len(end)} after"
    if faults:
        return expect_none(faults, detail, "lack their frame or are too long")
    return expect_none(misread_rows(evidence.codec, evaluation), detail, "have other tokens than their rows alone")


def misread_rows(codec: Codec, evaluation: Evaluation) -> list[str]:
    """A few words on each scored row whose tokens are not those of its texts, each encoded by itself."""
    tokens: dict[int, list[list[int]]] = {}
    for feature in evaluation.features:
        tokens.setdefault(feature.example, []).append(feature.input_ids)
    lone_codec = copy.copy(codec)
    lone_codec.tokenizer = LoneTokenizer(codec.tokenizer)
    step = math.ceil(len(evaluation.rows) / ENCODED)
    faults = []
    for i in range(0, len(evaluation.rows), step):
        expected = [feature.input_ids for feature in lone_codec.encode([evaluation.rows[i]], training=False)]
        if tokens.get(i, []) != expected:
            counts = [sum(map(len, windows)) for windows in (tokens.get(i, []), expected)]
            faults.append(f"row {i} with {counts[0]} for {counts[1]}")
    return faults


class LoneTokenizer:
    """A tokenizer that encodes each text by itself, without transformers: by a copy of its file that cuts and pads nothing."""

    def __init__(self, tokenizer: Any) -> None:
        """All but encoding is left to the tokenizer."""
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._file = backend and Tokenizer.from_str(backend.to_str())
        if self._file:
            self._file.no_truncation()
            self._file.no_padding()

    def __getattr__(self, name: str) -> Any:
        """The tokenizer's."""
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        """The tokenizer's."""
        return len(self._tokenizer)

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[Any]]:
        """The ids and places of all texts' tokens, without special tokens; a tokenizer of Python alone has no file."""
        if not self._file:
            encodings = [self._tokenizer([text], **options) for text in texts]
            return {name: [encoding[name][0] for encoding in encodings] for name in encodings[0]}
        files = [self._file.encode(text, add_special_tokens=False) for text in texts]
        return {"input_ids": [file.ids for file in files], "offset_mapping": [file.offsets for file in files]}


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
    """What these metrics satisfy whatever is predicted, and some rows scored again: on each row, on average, and in number.

    Fixed pairs have the points that were worked out by hand, and generated texts are what their tokens say.
    """
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
    faults += [*wrong_points(task.problem), *wrong_texts(evidence.codec, evaluation)]
    return not faults, faults[0] if faults else f"{count} rows, {len(examples)} metrics"


def wrong_texts(codec: Codec, evaluation: Evaluation) -> Iterator[str]:
    """A sentence for each generated text that is not what its tokens say."""
    if not isinstance(codec, GenerateCodec) or type(codec).decode is not GenerateCodec.decode:
        return
    for i, (output, prediction) in enumerate(zip(evaluation.outputs, evaluation.predictions, strict=True)):
        text = codec.decode_alone(output)
        if text is not None and text != prediction.value:
            yield f"the text of row {i} is decoded as {contrast(prediction.value, text)}"


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
    return Measured(gap, leeway(evidence)), f"{len(scored_rows(evaluation))} rows: scores differ by {gap:.1e} of the largest"
