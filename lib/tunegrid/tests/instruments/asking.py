"""A cell for instruments to ask, without a session around it."""

from dataclasses import replace
from functools import partial

from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import STUDY
from tunegrid.instruments.trained import TrainedCell
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.tests.small import CPU, cell_trainer, silent


def asked_cell(cell, test_rows=None, score=None):
    """A cell that has not trained, on 24 rows, to be scored on these rows or on 8 of its own."""
    splits = load_splits(cell.task, cell.profile)
    trainer = cell_trainer(cell, splits.train[:24])
    own_score = partial(
        evaluate, codec=trainer.codec, metrics=Metrics(), device=CPU, progress=silent()
    )
    return TrainedCell(
        cell=cell,
        codec=trainer.codec,
        trainer=trainer,
        splits=replace(splits, test=test_rows or splits.test[:8]),
        grid=STUDY,
        evaluate=score or own_score,
        read_splits=lambda task: load_splits(task, cell.profile),
        progress=silent(),
    )


def values(frame, figure, part=""):
    """The values of a figure of a part, row by row."""
    return frame[(frame.figure == figure) & (frame.part == part)].value.tolist()
