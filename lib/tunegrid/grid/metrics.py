"""A user's own score: a function of predictions and references, or a metric from `evaluate`."""

import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError, first_line

SCORE_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Columns of a run's files that are not scores.
OTHER_COLUMNS = (
    *("id", "prediction", "input", "reference", "confidence"),
    *("phase", "module", "kind", "library", "instrument", "figure", "part", "row", "note"),
)
OVERSHOOT = 1e-6  # points by which rounding may push a score out of its range


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A user's score for a task.

    Attributes:
        function: called with `predictions=` and `references=`, two lists with one entry per row: a
            label's number or a text. In extraction, a reference is a list of answers. The function
            returns a number, or a mapping with a number under `name`. An object with a `compute`
            method works too, such as the result of `evaluate.load`.
        worst: the number that is worth 0 points; it exceeds `best` if lower is better.
        best: the number that is worth 100 points.
        by_row: whether to call the function on one row at a time; the score is then the mean, and a
            gate compares the rows.
    """

    name: str
    function: Any
    worst: float = 0.0
    best: float = 1.0
    by_row: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for an invalid name, function or range."""
        if not SCORE_NAME.fullmatch(self.name) or self.name in OTHER_COLUMNS:
            expected = "lower-case letters, digits and underscores"
            raise InputError(f"{self.place}: give it another name, of {expected}")
        if isinstance(self.function, type) or not callable(self.compute):
            expected = "a function of predictions and references, or what evaluate.load returns"
            raise InputError(f"{self.place}: {shorten(self.function)} is not {expected}")
        if self.worst == self.best or not math.isfinite(self.worst - self.best):
            hint = "worst and best must be two different numbers, as worst=0, best=1"
            raise InputError(f"{self.place}: {hint}")

    @property
    def place(self) -> str:
        """The metric's name in messages."""
        return f"metric {self.name!r}"

    @property
    def compute(self) -> Callable[..., Any]:
        """The function to call."""
        function: Callable[..., Any] = getattr(self.function, "compute", self.function)
        return function

    def points(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """Scores predictions in points from 0 to 100.

        Raises InputError if the function fails or returns no number between `worst` and `best`.
        """
        try:
            value = self.compute(predictions=list(predictions), references=list(references))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            line = f"{Path(frame.filename).name}, line {frame.lineno}"
            cause = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{self.place} failed at {line}: {cause}") from error
        if isinstance(value, Mapping):
            if self.name not in value:
                names = ", ".join(map(str, value))
                hint = "give the metric the name of one of them"
                raise InputError(f"{self.place}: its function returned {names}; {hint}")
            value = value[self.name]
        try:
            number = float(value)
        except (TypeError, ValueError):
            returned = f"its function returned {shorten(value)}, which is no number"
            raise InputError(f"{self.place}: {returned}") from None
        points = 100 * (number - self.worst) / (self.best - self.worst)
        if not -OVERSHOOT <= points <= 100 + OVERSHOOT:
            bounds = f"worst={self.worst:g} and best={self.best:g}"
            hint = "declare its true range, or let the function limit what it returns"
            raise InputError(f"{self.place} is {number:g}, which is not between {bounds}: {hint}")
        return min(max(points, 0.0), 100.0)


def shorten(value: object) -> str:
    """The start of a value's repr, for messages."""
    return repr(value)[:60]
