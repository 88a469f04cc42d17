"""Every cell at its true size: what it takes in memory and time, from random weights and random tokens, without a hub."""

from dataclasses import replace

import pytest


@pytest.mark.cells("footprint")
def test_footprint(audit_before, held_bytes, trainer, codec, device, meter, progress, benchmark, record):
    from tunegrid.run.footprint import generation_rate, trace

    findings = audit_before()
    with meter.phase("trace"):
        footprint = trace(trainer, held_bytes)
    with meter.phase("train"):
        training = benchmark.pedantic(trainer.run, args=(progress,), rounds=1)
    with meter.phase("generate"):
        rate = generation_rate(trainer.model, codec, device, progress)
    missed = record(findings, training, footprint=replace(footprint, generated_tokens_per_second=rate)).missed
    assert not missed, "; ".join(missed)
