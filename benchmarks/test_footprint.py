"""Memory and time of every cell at its true size, from random weights and tokens, without a hub."""

import pytest


@pytest.fixture
def held_bytes(device):
    """The bytes that the device holds before the model is on it."""
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
