"""Instruments measure more of a trained cell: `--ask=ID,ID` adds their figures to its record.

An instrument is one file here, and its name in `LISTED`; a user's comes in a `--grid` file by
`grid.add_instrument`. It returns lines of `tidy`: a figure of a part of the cell, or of each row of
that part. Rows are whatever two runs pair: test rows, texts, layers. This module is imported if
`--ask` is given, the others when a cell is measured.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from tunegrid.data.sources import Row
from tunegrid.errors import InputError, first_line
from tunegrid.grid.tasks import Problem, Task
from tunegrid.record.record import Figure, InstrumentRecord, jsonable

if TYPE_CHECKING:
    import pandas as pd

    from tunegrid.instruments.trained import TrainedCell

__all__ = ("Figure", "Instrument", "NotAskedError", "Shift", "tidy")  # for users' files
LISTED = ("robustness", "forgetting", "calibration", "merges", "interpolation", "distillation")
RESERVED = (  # names of shifts, and of none
    "plain",
    "typos5",
    "contracted",
    "distracted2",
    "negated",
    "renumbered",
    "named",
)
RowChange = Callable[[Task, Mapping[str, Any], Random], Row]


class NotAskedError(Exception):
    """Raised if an instrument does not apply to a cell; the reason is printed below its table."""


class Instrument(ABC):
    """A measurement of a trained cell."""

    id: str  # as `--ask` names it
    question: str  # the heading of its table
    figures: Mapping[str, Figure]  # what it measures, in the order of the table

    def before(self, cell: "TrainedCell") -> Any:
        """Figures of the untrained model, for `measure`. Raises NotAskedError."""
        return None

    @abstractmethod
    def measure(self, cell: "TrainedCell", before: Any) -> "pd.DataFrame":
        """Lines of `tidy`. Raises NotAskedError."""

    def objections(self, figures: "pd.DataFrame") -> Iterable[str]:
        """Sentences on figures that fail the cell."""
        return ()


def check_instrument(instrument: Instrument) -> None:
    """Raises InputError if a record cannot hold an instrument's question or figures."""
    name = f"instrument {instrument.id!r}"
    try:
        figures = dict(instrument.figures)
        record = InstrumentRecord(question=instrument.question, figures=figures, file=None)
        TypeAdapter(InstrumentRecord).validate_json(to_json(jsonable(record)))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"]))
        example = 'Figure(better="lower", margin=0.1, shown=".2f")'
        cause = f"{field} is {fault['input']!r}: {fault['msg']}"
        raise InputError(f"{name}: {cause}; a figure is as {example}") from None
    except (AttributeError, TypeError, ValueError) as error:
        expected = "its question is a text, its figures are Figures by name"
        raise InputError(f"{name}: {expected} ({first_line(error)})") from None


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A change of test rows; a trained model is scored on rows with and without it.

    Attributes:
        meaning: the change in a few words.
        change: changes a task's row, with a generator of its own for each row. It returns an equal
            row if there is nothing to change. An answer's start must stay right.
        problems: the kinds of problem that it is for.
        turns: changes the target, and answers must follow. Any other shift keeps the target.
    """

    id: str
    meaning: str
    change: RowChange
    problems: tuple[Problem, ...] = tuple(Problem)
    turns: bool = False


def tidy(
    figure: str,  # its name
    value: float | Sequence[float],  # a number, or one for each row
    *,
    part: str = "",  # of the cell, as a shift or a base
    row: str | Sequence[str] = "",  # names of the rows, the same in every run
    weight: float | Sequence[float] = 1.0,  # of each row in the mean
    low: float | None = None,  # of the 95 % interval, if the figure is not a mean over rows
    high: float | None = None,
    note: str = "",  # text, such as the reason for a missing number
) -> "pd.DataFrame":
    """A figure of a part: one value, or one for each row."""
    import pandas as pd

    columns = {"figure": figure, "part": part, "row": row, "note": note}
    numbers = {"value": value, "weight": weight, "low": low, "high": high}
    length = len(value) if hasattr(value, "__len__") else 1
    return pd.DataFrame(columns | numbers, index=range(length))
