"""Scores a trained model on rows as shifts change them: of each, the points of every row, and whether answers turn that must.

Only rows that a shift changes are predicted anew; the others keep their points. Where a shift changes no token of any row, as
capital letters do not for a tokenizer without case, all rows are scored again: they must have the same points to the last bit.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tunegrid.codecs.base import Codec
from tunegrid.data.shifts import SEED, shifted_rows
from tunegrid.data.sources import Row
from tunegrid.grid.tasks import Problem, Shift, Task
from tunegrid.run.evaluate import Evaluation

ROWS = 400  # test rows at most: a drop of 2 points of 100 is then told from none; every shift costs an evaluation of them
Score = Callable[[Sequence[Row]], Evaluation]
Points = list[float]
Tokens = list[list[list[int]]]  # of each row, of each of its features


@dataclass(frozen=True, kw_only=True)
class ShiftPoints:
    """Points of every row under a shift that keeps the answers.

    Attributes:
        changed: rows of another text.
        read: rows of other tokens.
    """

    meaning: str
    points: Points
    changed: int
    read: int


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Whether each row that has a twin of another answer is answered rightly, and whether its twin is."""

    meaning: str
    right: Sequence[bool]
    twin: Sequence[bool]


@dataclass(frozen=True, kw_only=True)
class ShiftedPoints:
    """All that was scored.

    Attributes:
        plain: points of the rows as they are, by `metric`; `again` those of a second evaluation.
        predictions: of the rows as they are.
    """

    metric: str
    rows: Sequence[Row]
    predictions: Sequence[Any]
    plain: Points
    again: Points
    shifts: dict[str, ShiftPoints]
    contrasts: dict[str, Contrast]


def sampled(rows: Sequence[Row]) -> list[Row]:
    """At most `ROWS` rows, in their order."""
    return [rows[index] for index in sorted(Random(SEED).sample(range(len(rows)), min(ROWS, len(rows))))]


def shifted(codec: Codec, rows: Sequence[Row], score: Score, shifts: Iterable[Shift]) -> ShiftedPoints:
    """Points of a trained model under every shift that changes any row.

    Args:
        codec: of the cell.
        rows: its test rows.
        score: evaluates the model.
        shifts: for whatever problem; those of the task's are taken.
    """
    task, rows = codec.task, sampled(rows)
    plain = score(rows)
    metric = task.main_score if task.main_score in plain.examples else next(iter(plain.examples))
    tokens, keeping, contrasts = _tokens(codec, rows), dict[str, ShiftPoints](), dict[str, Contrast]()
    for shift in [one for one in shifts if task.problem in one.problems]:
        new = shifted_rows(task, rows, shift)
        changed = [index for index, (old, row) in enumerate(zip(rows, new, strict=True)) if row != old]
        if changed and shift.turns:
            contrasts[shift.id] = _contrast(shift, task, plain, new, changed, score)
        elif changed:
            keeping[shift.id] = _points(shift, codec, plain, tokens, new, changed, score, metric)
    return ShiftedPoints(
        metric=metric,
        rows=rows,
        predictions=[prediction.value for prediction in plain.predictions],
        plain=plain.examples[metric],
        again=score([dict(row) for row in rows]).examples[metric],
        shifts=keeping,
        contrasts=contrasts,
    )


def _points(
    shift: Shift,
    codec: Codec,
    plain: Evaluation,
    tokens: Tokens,
    new: Sequence[Row],
    changed: Sequence[int],
    score: Score,
    metric: str,
) -> ShiftPoints:
    before, after = [tokens[index] for index in changed], _tokens(codec, [new[index] for index in changed])
    read = [index for index, old, own in zip(changed, before, after, strict=True) if old != own]
    asked = changed if read else range(len(new))
    points = list(plain.examples[metric])
    for index, own in zip(asked, score([new[index] for index in asked]).examples[metric], strict=True):
        points[index] = own
    return ShiftPoints(meaning=shift.meaning, points=points, changed=len(changed), read=len(read))


def _tokens(codec: Codec, rows: Sequence[Row]) -> Tokens:
    """What the model reads of each row."""
    tokens: Tokens = [[] for _ in rows]
    for feature in codec.encode(rows, training=False):
        tokens[feature.example].append(feature.input_ids)
    return tokens


def _contrast(
    shift: Shift, task: Task, plain: Evaluation, new: Sequence[Row], changed: Sequence[int], score: Score
) -> Contrast:
    twins = score([new[index] for index in changed])
    pairs = [(plain.rows[index], twin) for index, twin in zip(changed, twins.rows, strict=True)]
    answers = [(plain.predictions[i].value, twin.value) for i, twin in zip(changed, twins.predictions, strict=True)]
    return Contrast(
        meaning=shift.meaning,
        right=[follows(task, twin, row, answer) for (row, twin), (answer, _) in zip(pairs, answers, strict=True)],
        twin=[follows(task, row, twin, answer) for (row, twin), (_, answer) in zip(pairs, answers, strict=True)],
    )


def follows(task: Task, other: Row, row: Row, answer: Any) -> bool:
    """Whether an answer is the row's and not that of the other, which asks the same of another text.

    A label is the row's or not. Of an answer or a summary, the words count that the row's target has and the other's has not:
    all of them are there, and none the other way round.
    """
    if task.problem is Problem.CLASSIFY:
        return bool(answer == row[task.target])
    own, others, said = _words(row[task.target]), _words(other[task.target]), _words(answer)
    return own - others <= said and not said & (others - own)


def _words(target: Any) -> set[str]:
    texts = target["text"] if isinstance(target, dict) else [target]
    return {word for text in texts for word in text.lower().split()}
