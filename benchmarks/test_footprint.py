"""Every cell at its true size: what it takes in memory and time, from random weights and random tokens, without a hub."""

import pytest


@pytest.mark.cells("footprint")
def test_footprint(held_bytes, trainer, codec, device, meter, progress, benchmark, record):
    from tunegrid.run.footprint import generation_rate, trace

    with meter.phase("trace"):
        footprint = trace(trainer, held_bytes)
    with meter.phase("train"):
        training = benchmark.pedantic(trainer.run, args=(progress,), rounds=1)
    with meter.phase("generate"):
        footprint.generated_tokens_per_second = generation_rate(trainer.model, codec, device, progress)
    missed = record(training, footprint=footprint)
    assert not missed, "; ".join(missed)
