"""Says, as sentences, what in a record is wrong: audits that failed, bounds missed, figures that cannot be true."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunegrid.grid.methods import METHODS
from tunegrid.grid.profiles import SCORED
from tunegrid.record.parts import AuditFinding
from tunegrid.record.record import Record, Status

POINTS = 1e-6  # what rounding may do to a score
ORDERED = (("exact_match", "f1"), ("rougeL", "rouge1"))  # on each row the first is at most the second
ORDERED_MEANS = (*ORDERED, ("rouge2", "rouge1"))  # on average only: a repeated bigram can break it on a row
BERTSCORE = ("bertscore_precision", "bertscore_f1", "bertscore_recall")


def impossible(scores: Mapping[str, float | None], empty_answers: float = 0.0) -> list[str]:
    """Sentences on means over rows that no predictions can have.

    Args:
        scores: points by metric.
        empty_answers: the points of exact match that may come from answers such as "a" for "the". By SQuAD v1.1's rules both
            normalize to nothing, so that they match exactly and share no word: EM 100, F1 0.
    """
    numbers = {name: score for name, score in scores.items() if score is not None}
    sentences = [f"{name} is not a number" for name, score in scores.items() if score is None]
    sentences += [f"{name} is {score}" for name, score in numbers.items() if not 0 <= score <= 100 + POINTS]
    sentences += [
        f"{low} {numbers[low]} is above {high} {numbers[high]}"
        for low, high in ORDERED_MEANS
        if low in numbers and high in numbers and numbers[low] > numbers[high] + allowed(low, empty_answers)
    ]
    return sentences + _impossible_bertscore(numbers)


def allowed(low: str, empty_answers: float) -> float:
    """By how many points a score may be above the one that it is normally at most."""
    return POINTS + (empty_answers if low == "exact_match" else 0.0)


def _impossible_bertscore(scores: Mapping[str, float]) -> list[str]:
    """F1 is a harmonic mean, so on each row, and on average, it is at most the arithmetic one."""
    if not all(name in scores for name in BERTSCORE):
        return []
    precision, f1, recall = (scores[name] for name in BERTSCORE)
    if f1 <= (precision + recall) / 2 + POINTS:
        return []
    return [f"bertscore_f1 {f1} is above the mean of precision {precision} and recall {recall}"]


def below_bounds(scores: Mapping[str, float | None], bounds: Mapping[str, float]) -> list[str]:
    """A sentence for every bound that the scores do not reach; a missing score is below every bound."""
    sentences = []
    for metric, minimum in bounds.items():
        score = scores.get(metric)
        if score is None:
            sentences.append(f"{metric} was not measured, its bound is {minimum:.1f}")
        elif not score >= minimum:
            sentences.append(f"{metric} {score:.1f} is below {minimum:.1f}")
    return sentences


def failures(findings: Iterable[AuditFinding], excused: Collection[str] = ()) -> list[str]:
    """What each audit that failed saw, but for those that do not count."""
    return [sentence_of(finding) for finding in findings if not finding.passed and finding.name not in excused]


def sentence_of(finding: AuditFinding) -> str:
    """What an audit that failed saw."""
    return f"audit {finding.name}: {finding.detail}"


def impossible_figures(record: Record) -> list[str]:
    """Sentences on scores that no predictions can have, and on losses that are not numbers.

    A saved record does not say whether one answer was an article alone.
    """
    one_row = 100 / record.data.rows.test if record.data and record.data.rows.test else 0.0
    losses = record.training.losses if record.training else ()
    not_numbers = any(loss is None or not math.isfinite(loss) for loss in losses)
    return impossible(record.scores, empty_answers=one_row) + (["a loss is not a number"] if not_numbers else [])


PERCENT = 1e-6  # what rounding may do to a share
# The audits that need a run of some length: no other may fail without counting.
NEED_LENGTH = ("weights_moved", "generation_not_truncated", "learned_something")


def names(record: Record) -> Iterator[str]:
    """The cell is its backbone, task and method, and the recipe is of that method."""
    parts = f"{record.backbone}_{record.task}_{record.method}"
    if record.cell != parts:
        yield f"cell is {record.cell}, but backbone, task and method are {parts}"
    method = next((method for method in METHODS if method.id == record.method), None)
    if method is None:  # of the zoo or of a user
        return
    for part, has, expected in (
        ("adapter", record.recipe.adapter is not None, method.adapts),
        ("quantization", record.recipe.quantization is not None, method.quantization is not None),
    ):
        if has != expected:
            yield f"recipe.{part} is {'set' if has else 'null'}, which is not method {record.method}"


def scores(record: Record) -> Iterator[str]:
    """A task is judged by some scores, its main one among them, and a cell that passed has that one."""
    if record.main_score not in record.bounded_scores:
        yield f"main_score {record.main_score!r} is not among bounded_scores, by which gates judge"
    if record.evaluation is not None and record.status == "passed" and record.scores.get(record.main_score) is None:
        yield f"scores has no {record.main_score}, but the status is 'passed'"


def findings(record: Record) -> Iterator[str]:
    """A cell that finished was audited; only audits that failed are excused, and of those only some."""
    if record.finished and not record.audits and record.stock is None:
        yield f"audits is empty, but the status is {record.status!r}"
    failed = {finding.name for finding in record.audits if not finding.passed}
    for name in record.excused:
        if name not in failed:
            yield f"excused has {name}, which is no audit that failed"
        elif name not in NEED_LENGTH:
            yield f"excused has {name}, which no run is too short for"


def stock_path(record: Record) -> Iterator[str]:
    """A cell whose libraries' path differs from ours did not pass."""
    if record.status == "passed" and record.stock and record.stock.differs:
        yield f"stock.differs says {record.stock.differs!r}, but the status is 'passed'"


def outcome(record: Record) -> Iterator[str]:
    """A cell that passed failed no audit, reached its bounds and has figures that can be."""
    if record.status == "passed":
        wrong = (
            *failures(record.audits, record.excused),
            *below_bounds(record.scores, record.bounds),
            *impossible_figures(record),
        )
        yield from (f"the status is 'passed', but {sentence}" for sentence in wrong)


def beginning(record: Record) -> Iterator[str]:
    """A cell of which the first updates were asked for has these, and neither scores nor bounds; no other cell says so."""
    if record.first_updates is None:
        if record.status == "begun":
            yield "first_updates is null, but the status is 'begun'"
        return
    if record.status != "begun":
        yield f"first_updates is {record.first_updates}, but the status is {record.status!r}"
    if record.training and record.training.updates != record.first_updates:
        yield f"first_updates is {record.first_updates}, but training.updates is {record.training.updates}"
    for name in ("evaluation", "scores", "examples", "bounds"):
        if getattr(record, name):
            yield f"{name} is set, but after the first updates nothing is scored"


def course(record: Record) -> Iterator[str]:
    """Each update has a loss, an epoch was chosen among those that were scored, and `stopped` says what the status says."""
    training = record.training
    if training is None:
        return
    if training.updates != len(training.losses):
        yield f"training.updates is {training.updates}, but training.losses has {len(training.losses)}"
    if training.chosen_epoch is not None and training.chosen_epoch > len(training.epoch_scores):
        yield f"training.chosen_epoch is {training.chosen_epoch}, but {len(training.epoch_scores)} epochs were scored"
    if record.finished and training.stopped is not None:
        yield f"training.stopped tells why it ended early, but the status is {record.status!r}"


def share(record: Record) -> Iterator[str]:
    """The share of trainable parameters is that of the counts."""
    counts = record.parameters
    if counts is None:
        return
    percent = 100 * counts.trainable_params / counts.total_params
    if abs(counts.trainable_percent - percent) > PERCENT:
        yield f"parameters.trainable_percent is {counts.trainable_percent:.4g}, but {percent:.4g} by the counts"


def rows(record: Record) -> Iterator[str]:
    """No split has more rows than it was limited to."""
    if record.data is None:
        return
    limits: Mapping[str, int | None] = {
        "train": record.limits.train_rows,
        "validation": record.limits.validation_rows,
        "test": record.limits.test_rows,
    }
    for split, limit in limits.items():
        count = getattr(record.data.rows, split)
        if limit is not None and count > limit:
            yield f"data.rows.{split} is {count}, but limits.{split}_rows is {limit}"


TRUTHS: tuple[Callable[[Record], Iterator[str]], ...] = (
    *(names, scores, findings, stock_path),
    *(outcome, beginning, course, share, rows),
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A record of one of these statuses, and of one of these profiles where any are named, has these fields.

    Attributes:
        present: fields that are not null.
        sentences: whether `missed` holds a sentence; None: either.
    """

    statuses: tuple[Status, ...]
    profiles: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    sentences: bool | None = None

    def applies(self, record: Record) -> bool:
        """Whether the record is one of those that the rule is for."""
        return record.status in self.statuses and (not self.profiles or record.profile in self.profiles)

    def schema(self) -> dict[str, Any]:
        """The rule as an `if` and `then` of JSON schema."""
        conditions: dict[str, Any] = {"status": {"enum": list(self.statuses)}}
        conditions |= {"profile": {"enum": list(self.profiles)}} if self.profiles else {}
        fields: dict[str, Any] = {name: {"type": "object"} for name in self.present}
        if self.sentences is not None:
            fields["missed"] = {"minItems": 1} if self.sentences else {"maxItems": 0}
        return {"if": {"properties": conditions, "required": list(conditions)}, "then": {"properties": fields}}


RULES = (
    Rule(
        statuses=("passed", "missed", "begun", "stopped"),
        profiles=(*SCORED, "footprint"),
        present=("device", "model", "parameters", "training", "memory", "throughput"),
    ),
    Rule(statuses=("passed", "missed"), profiles=("stock",), present=("device", "data", "stock")),
    Rule(statuses=("passed", "missed"), profiles=SCORED, present=("data", "evaluation")),
    Rule(statuses=("passed", "missed"), profiles=("footprint",), present=("flops",)),
    Rule(statuses=("begun",), present=("data",)),
    Rule(statuses=("passed",), sentences=False),
    Rule(statuses=("missed", "stopped", "error", "killed", "not run"), sentences=True),
)


def contradictions(record: Record) -> Iterator[str]:
    """A sentence for everything in a record that does not fit its status or its other fields: every reader asks here."""
    for rule in RULES:
        if not rule.applies(record):
            continue
        for name in rule.present:
            if getattr(record, name) is None:
                yield f"{name} is null, but the status is {record.status!r}"
        if rule.sentences is not None and rule.sentences != bool(record.missed):
            told = "holds sentences" if record.missed else "is empty"
            yield f"missed {told}, but the status is {record.status!r}"
    for truth in TRUTHS:
        yield from truth(record)
