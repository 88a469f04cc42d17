"""Defines the `TrainedCell` that instruments measure, and `Questions`, which runs instruments.

Instruments run in evaluation mode and without gradients, except while they train another cell.
Their errors are caught and recorded.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
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
    """A cell and its model; the evaluation is None until the cell is scored."""

    evaluate: Callable[..., Evaluation]  # evaluates a model like the cell's, without BERTScore
    grid: Grid  # the cell's grid, with users' shifts
    read_splits: Callable[[Task], Splits]  # reads a task's rows for the cell's profile
    progress: Progress

    def score(self, rows: Sequence[Row], model: nn.Module | None = None) -> Evaluation:
        """Scores rows with the cell's model or another model, but without BERTScore."""
        return self.evaluate(model or self.model, rows=rows)

    def row_points(self, evaluation: Evaluation) -> list[float]:
        """Each row's points on the main score; raises NotAskedError if it is not scored by row."""
        name = self.cell.task.main_score
        if name not in evaluation.examples:
            raise NotAskedError(f"its main score {name} gives single rows no points")
        return evaluation.examples[name]

    @property
    def sft(self) -> Cell:
        """The cell that fully fine-tunes this backbone on this task.

        Raises NotAskedError if the grid has no such cell or if this cell is SFT.
        """
        cell = self.cell
        cell_id = f"{cell.backbone.id}_{cell.task.id}_{SFT.id}"
        reason = ""
        if cell.id == cell_id:
            reason = "and this is SFT"
        elif cell_id not in self.grid.ids(cell.profile):
            reason = f"but the grid has no {cell_id}"
        if reason:
            raise NotAskedError(f"it compares a cell with SFT, {reason}")
        return self.grid.cell(cell_id, cell.profile)

    def train_other(self, cell: Cell, codec: Codec | None = None) -> nn.Module:
        """Trains another cell of the task, or this cell with another codec; returns the model.

        Raises NotAskedError if the new training run stops early, if several ranks share this cell,
        or if the cell trains on random tokens.
        """
        splits = self.splits
        if self.trainer.ranks.count > 1 or not splits:
            cause = "which ranks and random tokens do not allow"
            raise NotAskedError(f"it trains another cell, {cause}")
        codec = codec or make_codec(cell, load_tokenizer(cell))
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
        """The tasks of all cells in the grid, by id."""
        return {cell.task.id: cell.task for cell in self.grid.cells(self.cell.profile)}

    @cached_property
    def test_rows(self) -> Sequence[Row]:
        """The rows on which the cell is scored; none if it trains on random tokens."""
        return self.splits.test if self.splits else ()

    @cached_property
    def row_names(self) -> list[str]:
        """The names of the test rows, derived from their content; duplicates are numbered."""
        counts = Counter[str]()
        names = [row_id(row) for row in self.test_rows]
        for index, name in enumerate(names):
            counts[name] += 1
            if counts[name] > 1:
                names[index] += f" {counts[name]}"
        return names


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The records of a cell's instruments, by id, and the objections that make the cell fail."""

    records: dict[str, InstrumentRecord]
    objections: list[str]


class Questions:
    """Runs instruments on one cell before and after training."""

    def __init__(self, instruments: Sequence[Instrument], cell: TrainedCell) -> None:
        """Stores the instruments and the untrained cell."""
        self._instruments = instruments
        self._cell = cell
        self._known: dict[str, Any] = {}  # results of `before` by instrument id

    def before(self) -> None:
        """Measures the untrained model with each instrument."""
        for instrument in self._instruments:
            measure = partial(instrument.before, self._cell)
            self._known[instrument.id] = _attempt(self._cell, measure)

    def after(self, evaluation: Evaluation | None) -> Answers | None:
        """Measures the trained model with each instrument and stores all figures in a file.

        Returns None if there is no evaluation, because training stopped.
        """
        if not evaluation:
            return None
        cell = replace(self._cell, evaluation=evaluation)
        frames = []
        objections = list[str]()
        for instrument in self._instruments:
            answer = self._known[instrument.id]
            if not isinstance(answer, Exception):
                answer = _attempt(cell, partial(_measure, instrument, cell, answer))
            if isinstance(answer, Exception):
                reason = first_line(answer)
                if not isinstance(answer, NotAskedError | InputError):
                    reason = f"{type(answer).__name__}: {reason}"
                frame = tidy("", np.nan, note=reason)
                faults = [] if isinstance(answer, NotAskedError) else [reason]
            else:
                frame, faults = answer
            frames.append(frame.assign(instrument=instrument.id))
            objections += [f"{instrument.id}: {sentence}" for sentence in faults]
        figures = pd.concat(frames).replace([np.inf, -np.inf], np.nan)
        texts = dict.fromkeys(TEXT_COLUMNS["figures"], str)
        file = write_columns("figures", figures.astype(texts))
        records = {}
        for instrument in self._instruments:
            records[instrument.id] = InstrumentRecord(
                question=instrument.question,
                figures=dict(instrument.figures),
                file=file,
            )
        return Answers(records=records, objections=objections)


def _measure(
    instrument: Instrument,
    cell: TrainedCell,
    before: Any,
) -> tuple[pd.DataFrame, list[str]]:
    """Runs an instrument's `measure` and returns its figures and objections.

    Raises TypeError if the result is not a frame made of `tidy` lines, and ValueError if a figure
    is not declared.
    """
    frame = instrument.measure(cell, before)
    columns = tidy("", np.nan).columns
    if not isinstance(frame, pd.DataFrame):
        raise TypeError("measure() gave no frame; give lines of tidy()")
    missing = set(columns).difference(frame.columns)
    if missing:
        raise TypeError(f"its frame has no column {min(missing)!r}; make it of lines of tidy()")
    numbers = ("value", "weight", "low", "high")
    frame = frame[columns].astype(dict.fromkeys(numbers, float))
    undeclared = set(frame["figure"]) - set(instrument.figures)
    if undeclared:
        raise ValueError(f"it measures {min(undeclared)!r}, which is not among its figures")
    return frame, list(instrument.objections(frame))


def _attempt(cell: TrainedCell, call: Callable[[], Any]) -> Any:
    """Returns the result of a call or its exception; restores modes and random states.

    A failing instrument must not abort the training run.
    """
    with (
        cell.trainer.meter.phase("audit"),
        keep_state(cell.trainer),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # PEFT warns of rounding in merges and of GPT-2's layers
        try:
            return call()
        except Exception as error:
            if not isinstance(error, NotAskedError):
                traceback.print_exc()  # pytest shows the traceback with the failure
            return error
