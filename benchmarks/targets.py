"""Training rows with targets that are not theirs: the same rows, targets dealt out anew by a seed."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from tunegrid.grid.tasks import Problem

Rows = list[dict[str, Any]]


def dealt_out(column: str) -> Callable[[Rows, Random], Rows]:
    """A column's values, dealt out again among the rows."""

    def shuffle(rows: Rows, rng: Random) -> Rows:
        values = rng.sample([row[column] for row in rows], len(rows))
        return [row | {column: value} for row, value in zip(rows, values, strict=True)]

    return shuffle


def other_spans(rows: Rows, rng: Random) -> Rows:
    """Of each context another word than the answer."""
    return [row | {"answers": some_word(row["context"], rng)} for row in rows]


def some_word(context: str, rng: Random) -> dict[str, Any]:
    """A word of the context, as an answer."""
    words = context.split()
    index = rng.randrange(len(words))
    return {"text": [words[index]], "answer_start": [len(" ".join(words[:index])) + bool(index)]}


SHUFFLES: Mapping[Problem, Callable[[Rows, Random], Rows]] = {
    Problem.CLASSIFY: dealt_out("label"),
    Problem.EXTRACT: other_spans,
    Problem.GENERATE: dealt_out("highlights"),
}
