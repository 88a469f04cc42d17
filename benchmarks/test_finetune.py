"""Every cell of the grid as a test: train, score, leave a row, then hold it to its bounds."""

import pytest

from lib.grid.backbones import BACKBONES
from lib.grid.methods import METHODS
from lib.grid.tasks import TASKS


def cells(profile):
    """The grid as parameters, heaviest task first; ids are the study's."""
    mark = getattr(pytest.mark, profile)
    prefix = "" if profile == "quick" else f"{profile}-"
    return [
        pytest.param(profile, backbone.id, task.id, method.id, marks=mark, id=f"{prefix}{backbone.id}_{task.id}_{method.id}")
        for task in reversed(TASKS)
        for backbone in BACKBONES
        for method in METHODS
    ]


@pytest.mark.parametrize(("profile", "backbone", "task", "method"), [*cells("quick"), *cells("full")])
def test_finetune(trainer, validate, splits, score, meter, progress, benchmark, record):
    with meter.phase("train"):
        training = benchmark.pedantic(trainer.run, args=(progress, validate), rounds=1)
    with meter.phase("evaluate"):
        evaluation = None if training.stopped else score(splits.test)
    missed = record(training, evaluation)
    assert not missed, "; ".join(missed)
