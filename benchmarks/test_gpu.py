"""`pytest -m gpu` checks in a few minutes that a GPU's figures can be trusted.

Most tests compare two figures that must agree, such as the bytes in use before and after a cell.
Weights are random, so no hub is needed. The figures are written to the `--junitxml` file. No GPU
has run these tests yet.
"""

import math
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FOOTPRINT_PROFILE
from tunegrid.machine import GIB
from tunegrid.run.device import LEFT_GIB, free_memory, resolve_device
from tunegrid.run.footprint import baseline_bytes, trace, wrong_bytes
from tunegrid.run.prepare import prepare

pytestmark = pytest.mark.gpu

SPARE = 0.6  # share of an update's activations that the remaining memory can hold
# Largest relative difference between CUDA events and the wall clock over many updates
CLOCKS = 0.05
# Largest relative difference between losses: micro-batches of different sizes round differently,
# by up to a percent in bf16.
SAME_LOSS = 1e-2


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        reason = "whether a GPU's figures can be trusted is checked on a GPU"
        pytest.skip(f"{reason}, and torch sees none here")
    yield resolve_device("cuda")
    torch.cuda.set_sync_debug_mode("default")
    free_memory(torch.device("cuda"))


@pytest.fixture
def get_trainer(device):
    """A function that makes a trainer for a cell at its true size, with random tokens."""

    def make(cell_id, updates=8, **changes):
        cell = STUDY.cell(cell_id, replace(FOOTPRINT_PROFILE, device="cuda", max_steps=updates))
        cell = replace(cell, recipe=replace(cell.recipe, **changes))
        torch.cuda.reset_peak_memory_stats(device)
        trainer = prepare(cell, None, device)
        trainer.model.train()
        return trainer

    return make


def train(trainer, updates):
    for group in islice(trainer.updates(0), updates):
        trainer.update(group)
    trainer.part()  # copies to the host the figures that are still on the device
    return trainer


def test_a_cell_leaves_nothing_behind(get_trainer, device, record_property):
    before = baseline_bytes(device)
    # With fp16, accelerate puts the optimizer into a reference cycle.
    train(get_trainer("bert_sa_lora", precision="fp16"), 3)
    held_bytes = torch.cuda.memory_allocated(device)
    free_memory(device)
    after = torch.cuda.memory_allocated(device)
    record_property("bytes", {"before": before, "held": held_bytes, "after": after})
    left_gib = (after - before) / GIB
    # The libraries' workspaces take less than this.
    assert left_gib <= LEFT_GIB, f"a cell left {left_gib:.2f} GiB on the device"


@pytest.mark.parametrize("cell_id", ["gpt2_sa_qlora", "gpt2_sa_lora", "gpt2_sa_sft"])
def test_the_ledger_is_the_allocators(cell_id, get_trainer, device, record_property):
    baseline = baseline_bytes(device)
    trainer = get_trainer(cell_id)
    traced = trace(trainer, baseline)
    ledger = trainer.log.ledger
    record_property("bytes", vars(ledger) | vars(traced))
    assert wrong_bytes(ledger, traced, device) == []


def test_events_agree_with_the_wall_clock(get_trainer, device, record_property):
    trainer = train(get_trainer("bert_sa_sft", updates=30), 5)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for group in islice(trainer.updates(0), 5, 30):
        trainer.update(group)
    torch.cuda.synchronize(device)
    wall = time.perf_counter() - began
    events = sum(trainer.meter.durations(trainer.meter.updates[5:]))
    record_property("seconds", {"events": events, "wall": wall})
    assert math.isclose(events, wall, rel_tol=CLOCKS)


def test_the_ladder_holds_where_memory_really_runs_out(get_trainer, device, record_property):
    trainer = get_trainer("bert_sa_sft", precision="bf16")
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first, second = islice(trainer.updates(0), 2)
    trainer.update(first)
    torch.cuda.reset_peak_memory_stats(device)
    held_bytes = torch.cuda.memory_allocated(device)
    trainer.update(first)
    activations = torch.cuda.max_memory_allocated(device) - held_bytes
    whole_loss = float(trainer.accumulate(second, [])[0])
    free_memory(device)
    limit = held_bytes + SPARE * activations
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        pieces_loss = float(trainer.update(second))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    log = trainer.log
    figures = {
        "micro_batch": log.micro_batch,
        "limit_bytes": int(limit),
        "losses": [whole_loss, pieces_loss],
    }
    record_property("ladder", figures)
    assert log.micro_batch < trainer.cell.recipe.per_device_train_batch_size
    assert any(sentence.startswith("out of memory at update") for sentence in log.fallbacks)
    assert math.isclose(whole_loss, pieces_loss, rel_tol=SAME_LOSS)  # the update is the same


def test_lost_updates_are_counted(get_trainer, record_property):
    updates = 60
    high = 2.0**40
    trainer = get_trainer("bert_sa_lora", updates=updates, precision="fp16")
    # The scale is far too high, so the first updates overflow until it has come down.
    trainer.accelerator.scaler._init_scale = high
    train(trainer, updates)
    halvings = math.log2(high / trainer.accelerator.scaler.get_scale())
    skipped_updates = trainer.log.skipped
    scheduled = trainer.stepper.schedule.last_epoch
    figures = {"skipped": skipped_updates, "halvings": halvings, "scheduled": scheduled}
    record_property("updates", figures)
    assert skipped_updates, "no update was lost, so nothing was checked"
    assert len(skipped_updates) == halvings  # each lost update halved the scale once
    assert scheduled == updates - len(skipped_updates)  # lost updates do not advance the schedule


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_waits_for_nothing(precision, get_trainer):
    """No update waits for the GPU, except in the forward pass, which may read a mask."""
    trainer = train(get_trainer("bert_sa_sft", precision=precision), 3)
    trainer.model.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
    trainer.model.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("error"))
    torch.cuda.set_sync_debug_mode("error")  # the `device` fixture resets it
    trainer.update(next(trainer.updates(0)))
