"""Audits of what was asked, answered and scored."""

import math
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from random import Random
from statistics import fmean, stdev

from lib.codecs.base import Codec, Feature
from lib.codecs.letters import letters, same_letters
from lib.data.columns import answer_texts, context, joined
from lib.data.sources import Row
from lib.grid.methods import Answer
from lib.grid.tasks import Problem, Task
from lib.record.invariants import ORDERED, POINTS, impossible
from lib.run.audits.evidence import SAMPLE, Evidence, sample
from lib.run.metrics import rouge_examples, squad_examples

ENDED_SHARE = 0.9  # of generated texts that must end by themselves
ALIKE = 0.9  # of a window's letters
MORE_THAN_LUCK = 3.0  # standard errors


def windows_map_to_examples(evidence: Evidence) -> Answer:
    """A window's tokens are its row's context, and every answer is a piece of its own row's context."""
    if evidence.evaluation is None or not evidence.codec.extracts:
        return None
    rows, features = evidence.evaluation.rows, evidence.evaluation.features
    windows = [f for f in sample(features, 2 * SAMPLE) if not _shows(evidence.codec, rows[f.example], f)]
    contexts = [context(evidence.cell.task, row) for row in rows]
    strangers = [p for p, text in zip(evidence.evaluation.predictions, contexts, strict=True) if p.value not in text]
    covered = {f.example for f in features} == set(range(len(rows)))
    if windows or strangers or not covered:
        return False, f"{len(windows)} windows show another row's context, {len(strangers)} answers are not in their row's"
    return True, f"{len(features)} windows of {len(rows)} rows"


def _shows(codec: Codec, row: Row, feature: Feature) -> bool:
    window = codec.window(row, feature)
    if window is None:
        return True
    tokens, text = window
    if same_letters(tokens, text, codec.tokenizer.unk_token):
        return True
    # A tokenizer may lose letters beyond ASCII; contexts of two rows have hardly a line in common.
    return SequenceMatcher(None, letters(tokens), letters(text), autojunk=False).ratio() > ALIKE


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
    """What these metrics satisfy whatever is predicted: on each row, on average, and in the number of rows."""
    if evidence.evaluation is None:
        return None
    examples, scores = evidence.evaluation.examples, evidence.evaluation.scores
    count = len(evidence.evaluation.rows)
    faults = [f"{name} has {len(points)} rows of {count}" for name, points in examples.items() if len(points) != count]
    faults += impossible(scores)
    faults += [
        f"{name} {scores[name]:.2f} is not the mean {fmean(points):.2f} of its rows"
        for name, points in examples.items()
        if not math.isclose(scores[name], fmean(points), abs_tol=0.01)
    ]
    faults += [f"{low} is above {high} on row {row}" for low, high in ORDERED for row in above(examples, low, high)]
    faults += [f"bertscore_f1 is outside precision and recall on row {row}" for row in outside(examples)]
    return not faults, faults[0] if faults else f"{count} rows, {len(examples)} metrics"


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
    places = [rng.randrange(max(1, len(words) - length + 1)) for words in contexts]
    answers = [" ".join(words[place : place + length]) for words, place in zip(contexts, places, strict=True)]
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
