"""Every cell of the grid as a test: train, score, leave a row, then hold it to its bounds."""

import pytest


@pytest.mark.cells("quick", "zoo", "full")
def test_finetune(trainer, validate, splits, score, meter, progress, benchmark, record):
    with meter.phase("train"):
        training = benchmark.pedantic(trainer.run, args=(progress, validate), rounds=1)
    with meter.phase("evaluate"):
        evaluation = None if training.stopped else score(splits.test)
    missed = record(training, evaluation)
    assert not missed, "; ".join(missed)
