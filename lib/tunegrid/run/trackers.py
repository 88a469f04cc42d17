"""Reports a cell to experiment trackers: losses, rates and norms during training, then scores.

The trackers are accelerate's. They receive only numbers that the training log already has on the
host, so results stay the same, bit for bit.
"""

import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from filelock import FileLock
from transformers.utils import flatten_dict

from tunegrid.errors import first_line
from tunegrid.grid.cells import Cell
from tunegrid.record import Record, new_record, to_json
from tunegrid.run.device import random_states, set_random_states
from tunegrid.run.train import Trainer, TrainingLog


class Trackers:
    """A cell's trackers, started with its first losses. Failing ones are dropped with a warning."""

    def __init__(self, cell: Cell, options: Mapping[str, Mapping[str, Any]], lock: Path) -> None:
        """Takes each tracker's `options`, by name.

        Processes hold `lock` while they start their trackers.
        """
        self._cell = cell
        self._options = options
        self._lock = lock
        self._trackers: dict[str, Any] = {}
        self._is_started = False
        self._sent = 0  # updates sent so far

    def after_update(self, trainer: Trainer) -> None:
        """Sends the updates whose losses reached the host since the last call."""
        if len(trainer.log.losses) == self._sent:
            return
        if not self._is_started:
            states = random_states(trainer.meter.device)
            self._start()
            set_random_states(trainer.meter.device, states)
        for update in range(self._sent, len(trainer.log.losses)):
            figures = update_figures(trainer.log, update)
            self._call("log", figures, step=update + 1)
        self._sent = len(trainer.log.losses)

    def finish(self, record: Record | None) -> None:
        """Sends the record's scores, if the cell has a record, and ends the trackers."""
        if record and self._is_started:
            scores = record.scores.items()
            figures = {f"eval/{name}": points for name, points in scores if points is not None}
            self._call("log", figures, step=self._sent)
        self._call("finish")

    def _start(self) -> None:
        self._is_started = True
        with FileLock(self._lock):
            for name, options in self._options.items():
                self._trackers[name] = LOGGER_TYPE_TO_CLASS[name](**options)
            self._call("start")
        self._call("store_init_configuration", cell_settings(self._cell))

    def _call(self, method: str, *arguments: Any, **options: Any) -> None:
        """Calls a method of each tracker, and drops trackers that fail."""
        for name, tracker in [*self._trackers.items()]:
            try:
                with (
                    warnings.catch_warnings(action="ignore"),
                    redirect_stdout(StringIO()),
                    redirect_stderr(StringIO()),
                ):
                    getattr(tracker, method)(*arguments, **options)
            except Exception as error:  # may be of any kind, such as a full disk or a lost network
                del self._trackers[name]
                fault = f"--report-to={name}: {first_line(error)}"
                warnings.warn(f"{fault}; {self._cell.name} is not reported", stacklevel=2)


def update_figures(log: TrainingLog, update: int) -> dict[str, float]:
    """The figures to send for update number `update`, counting from 0."""
    figures = {
        "train/loss": log.losses[update],
        "train/learning_rate": log.learning_rates[update],
    }
    if log.gradient_norms:
        figures["train/gradient_norm"] = log.gradient_norms[update]
    return figures


def cell_settings(cell: Cell) -> dict[str, Any]:
    """The cell's id, profile, seed and recipe, flattened to numbers and text."""
    recipe = to_json(new_record(cell))["recipe"]
    names = {"cell": cell.id, "profile": cell.profile.id, "seed": cell.profile.seed}
    settings: dict[str, Any] = flatten_dict(names | recipe)
    for name, value in settings.items():
        if not isinstance(value, int | float):  # every tracker takes numbers and text
            settings[name] = str(value)
    return settings
