"""Declares a `Shift`: a change of a row's text under which its target is known. `tunegrid.data.shifts` has the suite's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tunegrid.grid.tasks import Problem, Task

Row = dict[str, Any]
RESERVED = ("plain", "id", "prediction", "reference")  # what else the file of rows has beside a shift's points
Change = Callable[[Task, Mapping[str, Any], Random], Row]


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A change of rows that a trained model is scored on, beside the rows as they are.

    Attributes:
        meaning: what it changes, in a few words.
        change: makes the changed row of a task's row, with a generator of its own for each row. It returns an equal row where
            there is nothing to change. An answer's start must stay right.
        problems: the kinds of problem that it is for.
        turns: the changed row has another target, which an answer must follow. Any other shift keeps what is right.
    """

    id: str
    meaning: str
    change: Change
    problems: tuple[Problem, ...] = tuple(Problem)
    turns: bool = False
