"""What an instrument asks, `TrainedCell`, and how: in evaluation mode, without gradients, and whatever it raises is kept."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from tunegrid.audits.evidence import Evidence
from tunegrid.codecs.base import Codec
from tunegrid.data.sources import Row
from tunegrid.data.splits import Splits
from tunegrid.errors import InputError, first_line
from tunegrid.grid.cells import Cell, Grid
from tunegrid.grid.methods import SFT
from tunegrid.grid.tasks import Task
from tunegrid.instruments import Instrument, NotAskedError, tidy
from tunegrid.record.record import InstrumentRecord
from tunegrid.run.build import load_tokenizer
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.meter import Progress
from tunegrid.run.prepare import make_codec, prepare
from tunegrid.run.probe import keep_state
from tunegrid.runs.examples import TEXT_COLUMNS, row_id, write_columns


@dataclass(frozen=True, kw_only=True)
class TrainedCell(Evidence):
    """A cell and its model; before training it has no evaluation yet."""

    evaluate: Callable[..., Evaluation]  # a model on rows, with whatever else the cell's own evaluation has
    grid: Grid  # that the cell is of; a user's shifts are in it
    read_splits: Callable[[Task], Splits]  # the rows of any task at the cell's profile
    progress: Progress  # where it is shown how far the cell is

    def score(self, rows: Sequence[Row], model: nn.Module | None = None) -> Evaluation:
        """Predictions and points of rows, by the cell's model or by another; without BERTScore, which takes long."""
        return self.evaluate(model or self.model, rows=rows)

    def row_points(self, evaluation: Evaluation) -> list[float]:
        """The main score's points of each row. Raises NotAskedError if it scores all rows at once."""
        name = self.cell.task.main_score
        if name not in evaluation.examples:
            raise NotAskedError(f"its main score {name} gives single rows no points")
        return evaluation.examples[name]

    @property
    def sft(self) -> Cell:
        """Full fine-tuning of the same backbone and task. Raises NotAskedError if this is it, or if the grid has none."""
        cell, cell_id = self.cell, f"{self.cell.backbone.id}_{self.cell.task.id}_{SFT.id}"
        if cell.id == cell_id or cell_id not in self.grid.ids(cell.profile):
            other = "and this is SFT" if cell.id == cell_id else f"but the grid has no {cell_id}"
            raise NotAskedError(f"it compares a cell with SFT, {other}")
        return self.grid.cell(cell_id, cell.profile)

    def train_other(self, cell: Cell, codec: Codec | None = None) -> nn.Module:
        """Another cell of the task, or this one again with a codec of its own, trained as the suite trains it: its model.

        Raises NotAskedError if it cannot be trained, or if ranks share this one's training.
        """
        if self.trainer.ranks.count > 1 or not self.splits:
            raise NotAskedError("it trains another cell, which ranks and random tokens do not allow")
        splits, codec = self.splits, codec or make_codec(cell, load_tokenizer(cell))
        trainer = prepare(cell, splits.train, self.device, codec=codec)

        def validate() -> tuple[float, Sequence[Row]]:
            evaluation = self.evaluate(trainer.model, codec=codec, rows=splits.validation)
            return evaluation.scores[cell.task.main_score], evaluation.rows

        with torch.enable_grad():
            reason = trainer.run(self.progress, validate).stopped
        if reason:
            raise NotAskedError(f"the other cell {cell.id} could not be trained: {reason}")
        return trainer.model.eval()

    @property
    def tasks(self) -> dict[str, Task]:
        """Of the cell and those beside it, by id."""
        return {other.task.id: other.task for other in self.grid.cells(self.cell.profile)}

    @cached_property
    def test_rows(self) -> Sequence[Row]:
        """The rows that the cell is scored on."""
        return self.splits.test if self.splits else ()

    @cached_property
    def row_names(self) -> list[str]:
        """Names of the test rows, by their content; equal rows are numbered."""
        counts = Counter[str]()
        names = [row_id(row) for row in self.test_rows]
        for index, name in enumerate(names):
            counts[name] += 1
            names[index] += f" {counts[name]}" if counts[name] > 1 else ""
        return names


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a cell's instruments say: parts of its record by id, and what fails it."""

    records: dict[str, InstrumentRecord]
    objections: list[str]


class Questions:
    """What instruments ask one cell, `before` it trains and `after`."""

    def __init__(self, instruments: Sequence[Instrument], cell: TrainedCell) -> None:
        """Nothing is asked yet."""
        self._instruments, self._cell = instruments, cell
        self._known: Mapping[str, Any] = {}

    def before(self) -> None:
        """What has to be asked of the model that has not trained, by instrument."""
        self._known = {one.id: _attempt(self._cell, partial(one.before, self._cell)) for one in self._instruments}

    def after(self, evaluation: Evaluation | None) -> Answers | None:
        """All questions to the trained cell, whose figures are kept in one file; None if its training stopped."""
        if not evaluation:
            return None
        cell, frames, objections = replace(self._cell, evaluation=evaluation), [], list[str]()
        for one in self._instruments:
            baseline = self._known[one.id]
            answer = baseline if isinstance(baseline, Exception) else _attempt(cell, partial(_measure, one, cell, baseline))
            if isinstance(answer, Exception):
                reason = first_line(answer)
                reason = reason if isinstance(answer, NotAskedError | InputError) else f"{type(answer).__name__}: {reason}"
                frame, faults = tidy("", np.nan, note=reason), [] if isinstance(answer, NotAskedError) else [reason]
            else:
                frame, faults = answer
            frames.append(frame.assign(instrument=one.id))
            objections += [f"{one.id}: {sentence}" for sentence in faults]
        frame = pd.concat(frames).replace([np.inf, -np.inf], np.nan).astype(dict.fromkeys(TEXT_COLUMNS["figures"], str))
        file = write_columns("figures", frame)
        records = {
            one.id: InstrumentRecord(question=one.question, figures=dict(one.figures), file=file) for one in self._instruments
        }
        return Answers(records=records, objections=objections)


def _measure(one: Instrument, cell: TrainedCell, before: Any) -> tuple[pd.DataFrame, list[str]]:
    """Figures and objections.

    Raises TypeError for what is no frame of `tidy`, and ValueError for an undeclared figure.
    """
    frame = one.measure(cell, before)
    columns = tidy("", np.nan).columns
    if not isinstance(frame, pd.DataFrame):
        raise TypeError("measure() gave no frame; give lines of tidy()")
    if missing := set(columns).difference(frame.columns):
        raise TypeError(f"its frame has no column {min(missing)!r}; make it of lines of tidy()")
    numbers = ("value", "weight", "low", "high")
    frame = frame[columns].astype(dict.fromkeys(numbers, float))
    if names := set(frame["figure"]) - set(one.figures):
        raise ValueError(f"it measures {min(names)!r}, which is not among its figures")
    return frame, list(one.objections(frame))


def _attempt(cell: TrainedCell, call: Callable[[], Any]) -> Any:
    """What a call returns or raises: a question must not cost the training. Random numbers stay as they were."""
    with cell.trainer.meter.phase("audit"), keep_state(cell.trainer), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on rounding where it merges and on layers of GPT-2
        try:
            return call()
        except Exception as error:
            if not isinstance(error, NotAskedError):
                traceback.print_exc()  # pytest shows it with the failure
            return error
