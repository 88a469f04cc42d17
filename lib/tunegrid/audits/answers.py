"""Audits of what was asked, answered and scored."""

import math
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from random import Random
from statistics import fmean, stdev
from typing import Any

from tunegrid.audits.evidence import SAMPLE, Evidence, sample
from tunegrid.codecs.base import Codec, Feature, alphanumeric, same_alphanumeric
from tunegrid.data.rows import answer_texts, context, joined
from tunegrid.data.sources import Row
from tunegrid.grid.methods import Answer
from tunegrid.grid.tasks import Problem, Task
from tunegrid.record.checks import ORDERED, POINTS, impossible
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.metrics import PointsByMetric, normalized, rouge_examples, sentence_lines, squad_examples

ENDED_SHARE = 0.9  # of generated texts that must end by themselves
ALIKE = 0.9  # of a window's letters
MORE_THAN_LUCK = 3.0  # standard errors


def windows_map_to_examples(evidence: Evidence) -> Answer:
    """A window's tokens are its row's context, and every answer is what the best of its own row's windows points at."""
    if evidence.evaluation is None or not evidence.codec.extracts:
        return None
    rows, features = evidence.evaluation.rows, evidence.evaluation.features
    windows = [f for f in sample(features, 2 * SAMPLE) if not _shows(evidence.codec, rows[f.example], f)]
    misread = _misread(evidence.codec, evidence.evaluation)
    covered = {f.example for f in features} == set(range(len(rows)))
    if windows or misread or not covered:
        return False, (
            f"{len(windows)} windows show another row's context, {len(misread)} answers are not what was pointed at"
            + (f", row {misread[0]} among them" if misread else "")
        )
    return True, f"{len(features)} windows of {len(rows)} rows"


def _misread(codec: Codec, evaluation: Evaluation) -> list[int]:
    """Rows whose answer, cut out of the context by characters, has other letters than the tokens of the best span.

    Answers beyond ASCII are left out: a token may be a part of such a letter. The mark that T5's tokenizer puts before a text
    says nothing, and has the place of the text's first letter.
    """
    best: dict[int, tuple[float, str | None]] = {}
    for feature, output in zip(evaluation.features, evaluation.outputs, strict=True):
        if feature.example not in best or output[0] > best[feature.example][0]:
            best[feature.example] = output[0], codec.pointed_at(feature, output)
    answers = {row: str(evaluation.predictions[row].value) for row in best}
    unknown = codec.tokenizer.unk_token
    return [
        row
        for row, (_, tokens) in best.items()
        if tokens is not None
        and answers[row].isascii()
        and not (same_alphanumeric(tokens, answers[row], unknown) or (tokens == "" and len(answers[row]) == 1))
    ]


def _shows(codec: Codec, row: Row, feature: Feature) -> bool:
    window = codec.window(row, feature)
    if window is None:
        return True
    tokens, text = window
    if same_alphanumeric(tokens, text, codec.tokenizer.unk_token):
        return True
    # A tokenizer may lose letters beyond ASCII; contexts of two rows have hardly a line in common.
    return SequenceMatcher(None, alphanumeric(tokens), alphanumeric(text), autojunk=False).ratio() > ALIKE


def prompt_intact_at_inference(evidence: Evidence) -> Answer:
    """What frames the input survives truncation: special tokens, the prefix, a separator, a chat template."""
    if evidence.evaluation is None:
        return None
    begin, end = evidence.codec.frame()
    features = evidence.evaluation.features
    broken = [f for f in features if f.input_ids[: len(begin)] != begin or f.input_ids[len(f.input_ids) - len(end) :] != end]
    long = [f for f in features if len(f.input_ids) > evidence.cell.recipe.max_length]
    if broken or long:
        return False, f"{len(broken)} of {len(features)} prompts lack their frame, {len(long)} are too long"
    return True, f"{len(features)} prompts, {len(begin)} tokens before and {len(end)} behind"


def generation_not_truncated(evidence: Evidence) -> Answer:
    """Generated texts end by themselves, nearly all of them, not at the limit of tokens."""
    if evidence.evaluation is None or not evidence.codec.generates:
        return None
    lengths = [len(ids) for ids in evidence.evaluation.outputs]
    ended = fmean(map(evidence.codec.ended, evidence.evaluation.outputs))
    return ended >= ENDED_SHARE, f"{ended:.0%} ended, {min(lengths)} to {max(lengths)} tokens, {fmean(lengths):.1f} on average"


def metric_invariants(evidence: Evidence) -> Answer:
    """What these metrics satisfy whatever is predicted, and some rows scored again: on each row, on average, and in number."""
    evaluation = evidence.evaluation
    if evaluation is None:
        return None
    examples, scores, count = evaluation.examples, evaluation.scores, len(evaluation.rows)
    faults = [f"{name} has {len(points)} rows of {count}" for name, points in examples.items() if len(points) != count]
    empty = empty_answers(evidence.cell.task, evaluation) if "exact_match" in examples else set()
    faults += impossible(scores, empty_answers=100 * len(empty) / count)
    faults += [
        f"{name} {scores[name]:.2f} is not the mean {fmean(points):.2f} of its rows"
        for name, points in examples.items()
        if not math.isclose(scores[name], fmean(points), abs_tol=0.01)
    ]
    faults += [] if faults else _other_points(evidence.cell.task, evaluation)
    faults += [
        f"{low} is above {high} on row {row}"
        for low, high in ORDERED
        for row in above(examples, low, high)
        if low != "exact_match" or row not in empty
    ]
    faults += [f"bertscore_f1 is outside precision and recall on row {row}" for row in outside(examples)]
    return not faults, faults[0] if faults else f"{count} rows, {len(examples)} metrics"


def empty_answers(task: Task, evaluation: Evaluation) -> set[int]:
    """Rows whose answer and one of its truths normalize to nothing, as "a" and "the": EM 100 and F1 0 by SQuAD v1.1's rules."""
    pairs = enumerate(zip(evaluation.predictions, evaluation.rows, strict=True))
    return {i for i, (p, row) in pairs if not normalized(str(p.value)) and not all(map(normalized, answer_texts(task, row)))}


def _other_points(task: Task, evaluation: Evaluation) -> list[str]:
    """Sentences on rows that score otherwise when their prediction is scored again, by itself; of texts, on some rows."""
    faults, values = [], [prediction.value for prediction in evaluation.predictions]
    for i in sorted(sample(range(len(values)), 2 * SAMPLE if task.problem is Problem.GENERATE else len(values))):
        for name, [points] in ALONE[task.problem](task, evaluation.rows[i], values[i]).items():
            there = evaluation.examples[name][i]
            if not math.isclose(there, points, abs_tol=0.01):
                faults.append(f"{name} of row {i} is {there:.2f}, but its prediction scores {points:.2f}")
    return faults


# The points of one row by itself. BERTScore is left out: its encoder is gone by now.
ALONE: dict[Problem, Callable[[Task, Row, Any], PointsByMetric]] = {
    Problem.CLASSIFY: lambda task, row, value: {"accuracy": [100.0 * (value == row[task.target])]},
    Problem.EXTRACT: lambda task, row, value: squad_examples([answer_texts(task, row)], [value]),
    Problem.GENERATE: lambda task, row, value: rouge_examples([row[task.target]], [sentence_lines(value)]),
}


def above(examples: dict[str, list[float]], low: str, high: str) -> list[int]:
    """Rows on which `low` is above `high`, which it cannot be."""
    pairs = zip(examples.get(low, ()), examples.get(high, ()), strict=True)
    return [row for row, (first, second) in enumerate(pairs) if first > second + POINTS]


def outside(examples: dict[str, list[float]]) -> list[int]:
    """Rows on which BERTScore's F1, a harmonic mean, is not between precision and recall."""
    names = ("bertscore_precision", "bertscore_f1", "bertscore_recall")
    triples = zip(*(examples.get(name, ()) for name in names), strict=True)
    return [row for row, (p, f1, r) in enumerate(triples) if not min(p, r) - POINTS <= f1 <= max(p, r) + POINTS]


def learned_something(evidence: Evidence) -> Answer:
    """Better than no model at all, by more than luck: three standard errors of the difference, row by row."""
    if evidence.evaluation is None or evidence.splits is None:
        return None
    task = evidence.cell.task
    name, trivial = BASELINES[task.problem](task, evidence.splits.train, evidence.evaluation.rows)
    points = evidence.evaluation.examples[name]
    gains = [ours - theirs for ours, theirs in zip(points, trivial, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    detail = f"{name} {fmean(points):.1f}, without a model {fmean(trivial):.1f}, standard error {error:.1f}"
    return fmean(gains) > MORE_THAN_LUCK * error, detail


def majority_class(task: Task, train: Sequence[Row], test: Sequence[Row]) -> tuple[str, list[float]]:
    """Always the label that most training rows have."""
    most = max(range(len(task.labels)), key=[row[task.target] for row in train].count)
    return "accuracy", [100.0 * (row[task.target] == most) for row in test]


def random_span(task: Task, train: Sequence[Row], test: Sequence[Row]) -> tuple[str, list[float]]:
    """As many words as answers have on average, from a random place of the context."""
    rng = Random(0)
    length = max(1, round(fmean(len(answer_texts(task, row)[0].split()) for row in train)))
    contexts = [context(task, row).split() for row in test]
    starts = [rng.randrange(max(1, len(words) - length + 1)) for words in contexts]
    answers = [" ".join(words[start : start + length]) for words, start in zip(contexts, starts, strict=True)]
    return "f1", squad_examples([answer_texts(task, row) for row in test], answers)["f1"]


def lead_sentence(task: Task, train: Sequence[Row], test: Sequence[Row]) -> tuple[str, list[float]]:
    """The first sentence of the text."""
    leads = [re.split(r"(?<=[.!?])\s+|\n", joined(row, task.text).strip(), maxsplit=1)[0] for row in test]
    return "rougeL", rouge_examples([row[task.target] for row in test], leads, ["rougeL"])["rougeL"]


# By problem, not by codec: an answer is held against the same baseline, be it a span or generated.
BASELINES: dict[Problem, Callable[[Task, Sequence[Row], Sequence[Row]], tuple[str, list[float]]]] = {
    Problem.CLASSIFY: majority_class,
    Problem.EXTRACT: random_span,
    Problem.GENERATE: lead_sentence,
}
