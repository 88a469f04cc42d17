"""Gives some training rows a wrong target, as annotators do: how much of it a method takes is then seen in its scores."""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from tunegrid.data.rows import answer_span, context
from tunegrid.data.sources import Row
from tunegrid.grid.tasks import Problem, Task

SEED = 0  # the same rows are wrong for every cell and every seed of training


def noisy(task: Task, rows: Sequence[Row], share: float) -> list[Row]:
    """The rows, a share of which have a wrong target."""
    rng = Random(SEED)
    chosen = sorted(rng.sample(range(len(rows)), round(share * len(rows))))
    wrong = dict(zip(chosen, WRONG[task.problem](task, [rows[index] for index in chosen], rng), strict=True))
    return [wrong.get(index, row) for index, row in enumerate(rows)]


def other_labels(task: Task, rows: Sequence[Row], rng: Random) -> list[Row]:
    """Each row with another label."""
    labels = range(len(task.labels))
    return [row | {task.target: rng.choice([label for label in labels if label != row[task.target]])} for row in rows]


def other_answers(task: Task, rows: Sequence[Row], rng: Random) -> list[Row]:
    """Each row with a word of its passage as the answer that is no part of the right one; the right one where there is none."""
    return [row | {task.target: {**row[task.target], **_other_word(task, row, rng)}} for row in rows]


def _other_word(task: Task, row: Row, rng: Random) -> dict[str, list[object]]:
    passage, (start, end) = context(task, row), answer_span(task, row)
    places, at = list[tuple[int, str]](), 0
    for word in passage.split():
        at = passage.index(word, at)
        if (at >= end or at + len(word) <= start) and any(letter.isalnum() for letter in word):
            places.append((at, word))
        at += len(word)
    place, word = rng.choice(places or [(start, passage[start:end])])
    return {"text": [word], "answer_start": [place]}


def other_texts(task: Task, rows: Sequence[Row], rng: Random) -> list[Row]:
    """Each row with the target of the next one."""
    return [row | {task.target: other[task.target]} for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True)]


WRONG: Mapping[Problem, Callable[[Task, Sequence[Row], Random], list[Row]]] = {
    Problem.CLASSIFY: other_labels,
    Problem.EXTRACT: other_answers,
    Problem.GENERATE: other_texts,
}
