"""Every cell of the grid as a test: audit, train, score, audit again, leave a row, then hold it to its bounds."""

import pytest

from tunegrid.terminal import visible


@pytest.mark.cells("quick", "zoo", "tasks", "full")
def test_finetune(audit_before, train, trainer, splits, score, audit_after, keep_rows, record, save_model, meter, benchmark):
    findings = audit_before()
    with meter.phase("train"):
        training = benchmark.pedantic(train, args=(findings,), rounds=1)
    with meter.phase("evaluate"):
        evaluation = None if training.stopped or trainer.paused else score(splits.test)
    findings = audit_after(findings, training, evaluation)
    row = record(training, evaluation, audits=findings, examples=keep_rows(evaluation))
    save_model(row)
    assert not row.missed, visible("; ".join(row.missed))
