"""Every cell of the grid as a test: train, score, leave a row, then hold it to its bounds."""

import pytest

from tunegrid.results.status import why_not_to_train
from tunegrid.terminal import visible


@pytest.mark.cells("quick", "zoo", "tasks", "full")
def test_finetune(
    cell, audit_before, trainer, course, validate, splits, score, meter, progress, benchmark, record, instruments
):
    instruments.before()
    findings = audit_before()
    wrong = why_not_to_train(cell, findings)
    with meter.phase("train"):
        train, given = (trainer.not_run, (wrong,)) if wrong else (course, (progress, validate))
        training = benchmark.pedantic(train, args=given, rounds=1)
    with meter.phase("evaluate"):
        evaluation = None if training.stopped or trainer.paused else score(splits.test)
    missed = record(findings, training, evaluation, answers=instruments.after(evaluation)).missed
    assert not missed, visible("; ".join(missed))
