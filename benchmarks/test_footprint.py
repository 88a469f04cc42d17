"""Measures memory and time of cells at true size; random weights and tokens replace the hub's."""

import pytest


@pytest.fixture
def held_bytes(device):
    """The bytes in use on a GPU before the model is loaded; 0 on a CPU."""
    from tunegrid.run.footprint import baseline_bytes

    return baseline_bytes(device)


@pytest.mark.cells("footprint")
def test_footprint(held_bytes, audit, trainer, meter, progress, benchmark, record):
    from tunegrid.run.footprint import trace

    findings = audit()
    with meter.phase("trace"):
        footprint = trace(trainer, held_bytes)
    with meter.phase("train"):
        training = benchmark.pedantic(trainer.run, args=(progress,), rounds=1)
    if not training.stopped:
        findings = audit(findings)
    row = record(training, audits=findings, footprint=footprint)
    assert not row.missed, "; ".join(row.missed)
