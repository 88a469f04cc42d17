"""A cell for instruments to ask, without a session around it."""

from functools import partial

from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import STUDY
from tunegrid.instruments.trained import TrainedCell
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.tests.small import CPU, cell_trainer, silent


def asked_cell(cell, grid=STUDY, rows=8, **more):
    """A cell that has not trained, on 24 rows, to be scored on so many."""
    splits = load_splits(cell.task, cell.profile)
    trainer = cell_trainer(cell, splits.train[:24])
    known = {
        "cell": cell,
        "codec": trainer.codec,
        "trainer": trainer,
        "splits": splits,
        "grid": grid,
    }
    score = partial(evaluate, codec=trainer.codec, metrics=Metrics(), device=CPU, progress=silent())
    one = TrainedCell(
        **known
        | {
            "evaluate": score,
            "read_splits": lambda task: load_splits(task, cell.profile),
            "progress": silent(),
        }
        | more
    )
    vars(one)["test_rows"] = list(splits.test[:rows])
    return one


def values(frame, figure, part=""):
    """What a figure of a part is, row by row."""
    return frame[(frame.figure == figure) & (frame.part == part)].value.tolist()
