"""Memory and time of every cell at its true size, with random weights and tokens, without a hub."""

import pytest


@pytest.fixture
def held_bytes(device):
    """The bytes in use on the device before the model is loaded."""
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
