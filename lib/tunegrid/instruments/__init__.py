"""An instrument asks a trained cell one more question: `--ask=ID,ID`, on any cell's test, leaves the same row with more in it.

An instrument is one file here, and its name in `LISTED`; a user's comes in a `--grid` file by `grid.add_instrument`. What it
measures are lines of `tidy`: a figure, of a part of the cell or of each row of that part. Rows are whatever two runs pair:
test rows, texts, layers. This module is imported if `--ask` is given, the others where a cell answers.
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

__all__ = ("Figure", "Instrument", "NotAskedError", "Shift", "tidy")  # what a user's file takes
LISTED = ("robustness", "forgetting", "calibration", "merges", "interpolation", "distillation")
RESERVED = ("plain", "typos5", "contracted", "distracted2", "negated", "renumbered", "named")  # shifts, and none
Change = Callable[[Task, Mapping[str, Any], Random], Row]


class NotAskedError(Exception):
    """This cell cannot be asked; the message says why, and stands below the table. It fails nothing."""


class Instrument(ABC):
    """One more question to a trained cell."""

    id: str  # as `--ask` names it
    question: str  # the heading of its table
    figures: Mapping[str, Figure]  # what it measures, in the order of the table

    def before(self, cell: "TrainedCell") -> Any:
        """What has to be asked of the model before it trains; `measure` gets it. Raises NotAskedError."""
        return None

    @abstractmethod
    def measure(self, cell: "TrainedCell", before: Any) -> "pd.DataFrame":
        """Lines of `tidy`. Raises NotAskedError."""

    def objections(self, figures: "pd.DataFrame") -> Iterable[str]:
        """What fails the cell by itself."""
        return ()


def check_instrument(instrument: Instrument) -> None:
    """Raises InputError if an instrument's question or figures are none that a record can hold."""
    place = f"instrument {instrument.id!r}"
    try:
        figures = dict(instrument.figures)
        part = InstrumentRecord(question=instrument.question, figures=figures, file=None)
        TypeAdapter(InstrumentRecord).validate_json(to_json(jsonable(part)))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"]))
        example = 'Figure(better="lower", margin=0.1, shown=".2f")'
        cause = f"{field} is {fault['input']!r}: {fault['msg']}"
        raise InputError(f"{place}: {cause}; a figure is as {example}") from None
    except (AttributeError, TypeError, ValueError) as error:
        expected = "its question is a text, its figures are Figures by name"
        raise InputError(f"{place}: {expected} ({first_line(error)})") from None


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


def tidy(
    figure: str,  # its name
    value: float | Sequence[float],  # a number, or one for each row
    *,
    part: str = "",  # of what, as a shift or a base
    row: str | Sequence[str] = "",  # names of the rows, the same in every run
    weight: float | Sequence[float] = 1.0,  # of each row in the mean
    low: float | None = None,  # of the 95 % interval, if the figure is no mean over rows
    high: float | None = None,
    note: str = "",  # what is no number, as why there is none
) -> "pd.DataFrame":
    """A figure of a part: one value, or one for each row."""
    import pandas as pd

    columns = {"figure": figure, "part": part, "row": row, "note": note}
    numbers = {"value": value, "weight": weight, "low": low, "high": high}
    return pd.DataFrame(columns | numbers, index=range(len(value) if hasattr(value, "__len__") else 1))
