"""Scores predictions with a task's and the user's metrics, in points from 0 to 100.

Accuracy, F1, exact match and ROUGE equal the results of the reference implementations:
scikit-learn, SQuAD v1.1's official script and `rouge_score`. With the same encoder, BERTScore
agrees with `bert_score` to within 0.01 points.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tunegrid.data.sources import Row, answer_texts
from tunegrid.grid.metrics import Metric
from tunegrid.grid.tasks import Problem, Task

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Scores = dict[str, float]
PointsByMetric = dict[str, list[float]]  # points of each row, by metric
# For each problem, the per-row score that shows learning.
TELLING = {Problem.CLASSIFY: "accuracy", Problem.EXTRACT: "f1", Problem.GENERATE: "rougeL"}
TEXT_BATCH = 64  # texts embedded per batch


@dataclass(kw_only=True)
class Metrics:
    """Settings of the metrics; without a `bert_scorer`, BERTScore is not computed."""

    bert_scorer: "BertScorer | None" = None
    own: Sequence[Metric] = ()  # the user's metrics


def needs_bertscore(task: Task) -> bool:
    """Checks whether any of the task's bounded scores is a BERTScore."""
    return any(name.startswith("bertscore_") for name in task.bounded_scores)


@dataclass(kw_only=True)
class Scored:
    """Scores over all rows, and points per row for metrics that average over rows."""

    scores: Scores
    examples: PointsByMetric
    sources: dict[str, str]  # each metric family's implementation


def classification(
    metrics: Metrics,
    task: Task,
    rows: Sequence[Row],
    predicted: Sequence[int],
) -> Scored:
    """Accuracy, macro F1, and each class's precision, recall and F1."""
    references = [row[task.target] for row in rows]
    hits = [100.0 * (truth == guess) for truth, guess in zip(references, predicted, strict=True)]
    scores = classification_scores(references, predicted, len(task.labels))
    sources = {"accuracy": "built-in", "f1": "built-in"}
    return Scored(scores=scores, examples={"accuracy": hits}, sources=sources)


def classification_scores(
    references: Sequence[int],
    predicted: Sequence[int],
    count: int,
) -> Scores:
    """Scores for `count` classes; as in scikit-learn, a class never predicted has precision 0."""

    def percent(hits: int, total: int) -> float:
        return 100 * hits / total if total else 0.0

    pairs = Counter(zip(references, predicted, strict=True))
    classes = range(count)
    scores = {"accuracy": 100 * sum(pairs[label, label] for label in classes) / len(references)}
    for label in classes:
        hits = pairs[label, label]
        truths = sum(pairs[label, guess] for guess in classes)
        guesses = sum(pairs[truth, label] for truth in classes)
        scores[f"precision_{label}"] = percent(hits, guesses)
        scores[f"recall_{label}"] = percent(hits, truths)
        scores[f"f1_{label}"] = percent(2 * hits, truths + guesses)
    scores["f1_macro"] = sum(scores[f"f1_{label}"] for label in classes) / count
    return scores


# Extraction: the official SQuAD v1.1 evaluation (Rajpurkar et al. 2016), in its order of steps


def simplify(answer: str) -> str:
    """Lowercases an answer and removes punctuation, articles and extra white space."""
    letters = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def token_f1(answer: str, truth: str) -> float:
    """The word-level F1 (0 to 1) of a normalized answer against a normalized true answer."""
    words, truth_words = answer.split(), truth.split()
    shared = sum((Counter(words) & Counter(truth_words)).values())
    return 2 * shared / (len(words) + len(truth_words)) if shared else 0.0


def squad_examples(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> PointsByMetric:
    """Exact match and F1 of each question, in points; each is the maximum over the true answers."""
    exact = []
    f1 = []
    for row_truths, answer in zip(truths, answers, strict=True):
        guess = simplify(answer)
        simple_truths = [simplify(truth) for truth in row_truths]
        exact.append(100.0 * (guess in simple_truths))
        f1.append(100 * max(token_f1(guess, truth) for truth in simple_truths))
    return {"exact_match": exact, "f1": f1}


def extraction(
    metrics: Metrics,
    task: Task,
    rows: Sequence[Row],
    predicted: Sequence[str],
) -> Scored:
    """Exact match and F1, for extracted spans and generated answers alike."""
    examples = squad_examples([answer_texts(task, row) for row in rows], predicted)
    scores = {name: fmean(points) for name, points in examples.items()}
    return Scored(scores=scores, examples=examples, sources={"squad": "built-in"})


def generation(
    metrics: Metrics,
    task: Task,
    rows: Sequence[Row],
    predicted: Sequence[str],
) -> Scored:
    """ROUGE F-measures with stemming, and BERTScore if the task needs it and a scorer exists."""
    references = [row[task.target] for row in rows]
    examples = rouge_examples(references, [sentence_lines(text) for text in predicted])
    sources = {"rouge": "rouge_score"}
    if metrics.bert_scorer and needs_bertscore(task):
        examples |= metrics.bert_scorer.examples(references, predicted)
        sources["bertscore"] = f"built-in, {metrics.bert_scorer.name}"
    scores = {name: fmean(points) for name, points in examples.items()}
    return Scored(scores=scores, examples=examples, sources=sources)


def sentence_lines(text: str) -> str:
    """Puts each sentence on its own line for rougeLsum, since generated text has no line breaks."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def rouge_examples(references: Sequence[str], predicted: Sequence[str]) -> PointsByMetric:
    """Each example's ROUGE F-measures in points, with Porter stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    points: PointsByMetric = {name: [] for name in ROUGE_TYPES}
    for reference, text in zip(references, predicted, strict=True):
        scores = scorer.score(reference, text)
        for name in ROUGE_TYPES:
            points[name].append(100 * scores[name].fmeasure)
    return points


METRICS: dict[Problem, Callable[[Metrics, Task, Sequence[Row], Sequence[Any]], Scored]] = {
    Problem.CLASSIFY: classification,
    Problem.EXTRACT: extraction,
    Problem.GENERATE: generation,
}


def score_rows(
    metrics: Metrics,
    task: Task,
    rows: Sequence[Row],
    predicted: Sequence[Any],
) -> Scored:
    """Scores predictions with the metrics for the task's problem and the user's own metrics."""
    scored = METRICS[task.problem](metrics, task, rows, predicted)
    references = [row[task.target] for row in rows]
    if task.problem is Problem.EXTRACT:
        references = [answer_texts(task, row) for row in rows]
    for metric in metrics.own:
        if metric.by_row:
            pairs = zip(predicted, references, strict=True)
            points = [metric.points([guess], [truth]) for guess, truth in pairs]
            scored.examples[metric.name] = points
            scored.scores[metric.name] = fmean(points)
        else:
            scored.scores[metric.name] = metric.points(predicted, references)
        scored.sources[metric.name] = "own"
    return scored


# BERTScore (Zhang et al. 2020) with any BERT encoder. Like `bert_score`'s defaults, it uses neither
# idf weights nor rescaling; with the same encoder the two agree within 1e-4. The encoder is not
# that package's default, so compare only runs that name the same encoder.


class Embedded(NamedTuple):
    """The embedded tokens of a text; each may match any token of another text."""

    vectors: Tensor  # (tokens, width), of unit length
    counted: Tensor  # (tokens,); means exclude [CLS] and [SEP], which all texts have


class BertScorer:
    """Computes BERTScore, which matches tokens of two texts by the cosine of their embeddings."""

    def __init__(self, name: str, tokenizer: Any, encoder: Any) -> None:
        """Takes an encoder with its tokenizer; `name` goes into the record."""
        self.name = name
        self._tokenizer = tokenizer
        self._encoder = encoder.eval()
        # bert_score uses layer 9 of bert-base's 12, which correlates best with human judgement.
        self._layer = round(0.75 * encoder.config.num_hidden_layers)
        self._window = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    def examples(self, references: Sequence[str], candidates: Sequence[str]) -> PointsByMetric:
        """Precision, recall and F1 of each example, in points; an empty text scores 0."""
        points: PointsByMetric = {
            "bertscore_precision": [],
            "bertscore_recall": [],
            "bertscore_f1": [],
        }
        for match in map(greedy_match, self._embed(candidates), self._embed(references)):
            for values, value in zip(points.values(), match, strict=True):
                values.append(100 * value)
        return points

    def _embed(self, texts: Sequence[str]) -> list[Embedded]:
        """Embeds each text's tokens; truncates the text to the encoder's window."""
        frame = torch.tensor([self._tokenizer.cls_token_id, self._tokenizer.sep_token_id])
        embeddings: list[Embedded] = []
        for start in range(0, len(texts), TEXT_BATCH):
            batch = self._tokenizer(
                list(texts[start : start + TEXT_BATCH]),
                padding=True,
                truncation=True,
                max_length=self._window,
                return_tensors="pt",
            )
            mask = batch["attention_mask"]
            with torch.inference_mode():
                output = self._encoder(
                    batch["input_ids"],
                    attention_mask=mask,
                    output_hidden_states=True,
                )
            states = normalize(output.hidden_states[self._layer].float(), dim=-1)
            for row, ids, is_token in zip(states, batch["input_ids"], mask.bool(), strict=True):
                counted = ~torch.isin(ids[is_token], frame)
                embeddings.append(Embedded(vectors=row[is_token], counted=counted))
        return embeddings


def greedy_match(candidate: Embedded, reference: Embedded) -> tuple[float, float, float]:
    """Precision, recall and F1 (0 to 1) from each counted token's best cosine in the other text."""
    if not candidate.counted.any() or not reference.counted.any():
        return 0.0, 0.0, 0.0
    cosines = candidate.vectors @ reference.vectors.T
    precision = float(cosines.max(1).values[candidate.counted].mean())
    recall = float(cosines.max(0).values[reference.counted].mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
