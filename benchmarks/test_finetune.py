"""Tests every cell of the grid: audit, train, score, audit again, record, compare with bounds.

With `--ask`, instruments also measure the cell before and after training, and its record includes
their results.
"""

import pytest

from fixtures.pipeline import keep_rows
from tunegrid.terminal import defuse


@pytest.mark.cells("quick", "zoo", "tasks", "full")
def test_finetune(
    cell,
    audit,
    train,
    trainer,
    splits,
    score,
    record,
    save_model,
    meter,
    benchmark,
    instruments,
):
    if instruments:
        instruments.before()
    findings = audit()
    with meter.phase("train"):
        training = benchmark.pedantic(train, args=(findings,), rounds=1)
    with meter.phase("evaluate"):
        evaluation = None if training.stopped or trainer.paused else score(splits.test)
    if not training.stopped:
        findings = audit(findings, evaluation)
    answers = instruments.after(evaluation) if instruments else None
    row = record(
        training,
        evaluation,
        audits=findings,
        examples=keep_rows(cell, evaluation),
        answers=answers,
    )
    save_model(row)
    assert not row.missed, defuse("; ".join(row.missed))
