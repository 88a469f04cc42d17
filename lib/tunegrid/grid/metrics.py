"""A score of a user's own: a function of predictions and references, or what `evaluate.load`
returns.
"""

import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError, first_line

SCORE_NAME = re.compile(r"[a-z][a-z0-9_]*")
# of a run's files, which are no scores
OTHER_COLUMNS = (
    *("id", "prediction", "input", "reference", "confidence"),
    *("phase", "module", "kind", "library", "instrument", "figure", "part", "row", "note"),
)
OVERSHOOT = 1e-6  # points by which a sum may leave its range


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of a task.

    Attributes:
        function: takes `predictions=` and `references=`, lists of one entry a row: numbers of
            labels,
            or texts; references of a question are lists of answers. It returns a number, or numbers
            by
            name. It may have a method `compute` instead, as what `evaluate.load` returns.
        worst: the number that is 0 points. If less is better, it is above `best`.
        best: the number that is 100 points.
        by_row: asks for each row alone; the score is the mean, and a gate compares rows.
    """

    name: str
    function: Any
    worst: float = 0.0
    best: float = 1.0
    by_row: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for a name that no score can have, or for no function or range."""
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
        """The function that is called."""
        function: Callable[..., Any] = getattr(self.function, "compute", self.function)
        return function

    def points(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """The points of predictions, 0 to 100.

        Raises InputError if the function fails, or returns no number of its range.
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
    """The start of a value's text."""
    return repr(value)[:60]
