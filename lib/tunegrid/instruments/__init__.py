"""Defines instruments, extra measurements of a trained cell that `--ask=ID,ID` adds to its record.

The built-in instruments are the modules of this package that `LISTED` names. Users add their own in
a `--grid` file with `grid.add_instrument`. An instrument returns lines made by `tidy`, each with a
figure for a part of the cell or for one row of that part. Rows are anything that two runs can pair,
such as test rows, texts or layers. Instruments are imported only when a cell is measured.
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

__all__ = ("Figure", "Instrument", "NotAskedError", "Shift", "tidy")  # for use in users' files
LISTED = ("robustness", "forgetting", "calibration", "merges", "interpolation", "distillation")
RESERVED = (  # ids that users' shifts cannot use: "plain" for unchanged rows, and built-in shifts
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
    """Raised if an instrument does not apply to a cell; the message gives the reason."""


class Instrument(ABC):
    """An extra measurement of a trained cell."""

    id: str  # its name for `--ask`
    question: str  # the heading of its table
    figures: Mapping[str, Figure]  # what it measures, in table order

    def before(self, cell: "TrainedCell") -> Any:
        """Measures the untrained model; `measure` receives the result.

        Raises NotAskedError if the instrument does not apply to the cell.
        """
        return None

    @abstractmethod
    def measure(self, cell: "TrainedCell", before: Any) -> "pd.DataFrame":
        """Measures the trained model and returns lines made by `tidy`.

        Raises NotAskedError if the instrument does not apply to the cell.
        """

    def objections(self, figures: "pd.DataFrame") -> Iterable[str]:
        """Yields sentences that say why the figures make the cell fail; none by default."""
        return ()


def check_instrument(instrument: Instrument) -> None:
    """Raises InputError if a record cannot store the instrument's question or figures."""
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
    """A change to test rows; a trained model is scored on rows with and without the change.

    Attributes:
        meaning: the change in a few words.
        change: a function that changes a row of a task, with a fresh generator for each row. It
            returns an equal row if there is nothing to change, and must keep the start of each
            answer correct.
        problems: the kinds of problem that the shift applies to.
        turns: whether the shift changes the right answer, so that the model's answer must change
            too.
    """

    id: str
    meaning: str
    change: RowChange
    problems: tuple[Problem, ...] = tuple(Problem)
    turns: bool = False


def tidy(
    figure: str,  # name of the figure
    value: float | Sequence[float],  # a number, or a number for each row
    *,
    part: str = "",  # part of the cell, such as a shift or a base
    row: str | Sequence[str] = "",  # names of rows, identical in every run
    weight: float | Sequence[float] = 1.0,  # weight of each row in the mean
    low: float | None = None,  # ends of the 95 % interval, unless the figure is a mean over rows
    high: float | None = None,
    note: str = "",  # such as the reason for a missing number
) -> "pd.DataFrame":
    """Builds the lines of one figure for a part of the cell: a single line, or one for each row."""
    import pandas as pd

    columns = {"figure": figure, "part": part, "row": row, "note": note}
    numbers = {"value": value, "weight": weight, "low": low, "high": high}
    length = len(value) if hasattr(value, "__len__") else 1
    return pd.DataFrame(columns | numbers, index=range(length))
