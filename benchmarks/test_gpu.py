"""`pytest -m gpu`: in a few minutes, whether this GPU's figures can be trusted. From random weights, without a hub.

Each test measures one thing twice, in two ways that must agree. The figures go to `--benchmark-json`; if all pass, they can be
trusted. No GPU has run this yet.
"""

import math
import time
from dataclasses import replace
from itertools import islice

import pytest

pytestmark = pytest.mark.gpu

SPARE = 0.6  # of an update's activations: what the ladder is left with
CLOCKS = 0.05  # the share by which CUDA events and the wall clock may differ over a run of updates
SAME_LOSS = 1e-2  # relative: micro-batches of other sizes round otherwise, in bf16 by up to a percent


@pytest.fixture
def device():
    import torch

    from tunegrid.run.device import free_memory, resolve_device

    if not torch.cuda.is_available():
        pytest.skip("whether a GPU's figures can be trusted is checked on a GPU, and torch sees none here")
    yield resolve_device("cuda")
    torch.cuda.set_sync_debug_mode("default")
    free_memory(torch.device("cuda"))


@pytest.fixture
def trainer_of(device):
    """A trainer of a cell at its true size, over random tokens."""
    import torch

    from tunegrid.grid.cells import STUDY
    from tunegrid.grid.recipes import FOOTPRINT_PROFILE
    from tunegrid.run.prepare import prepare

    def make(cell_id, updates=8, **changes):
        cell = STUDY.cell(cell_id, replace(FOOTPRINT_PROFILE, device="cuda", max_steps=updates))
        cell = replace(cell, recipe=replace(cell.recipe, **changes))
        torch.cuda.reset_peak_memory_stats(device)
        trainer = prepare(cell, None, device)
        trainer.model.train()
        return trainer

    return make


@pytest.fixture
def measured(benchmark):
    """Measures, and keeps the figures."""

    def run(measure):
        benchmark.group = "gpu"
        figures = benchmark.pedantic(measure, rounds=1)
        benchmark.extra_info.update(figures)
        return figures

    return run


def train(trainer, updates):
    for group in islice(trainer.updates(0), updates):
        trainer.update(group)
    trainer.part()  # brings to the host what is still on the device
    return trainer


def test_a_cell_leaves_nothing_behind(trainer_of, device, measured):
    import torch

    from tunegrid.run.device import GIB, LEFT_GIB, free_memory
    from tunegrid.run.footprint import baseline_bytes

    def measure():
        before = baseline_bytes(device)
        train(trainer_of("bert_sa_lora", precision="fp16"), 3)  # accelerate ties fp16's optimizer into a cycle
        held = torch.cuda.memory_allocated(device)
        free_memory(device)
        return {"before_bytes": before, "held_bytes": held, "after_bytes": torch.cuda.memory_allocated(device)}

    figures = measured(measure)
    left = (figures["after_bytes"] - figures["before_bytes"]) / GIB
    assert left <= LEFT_GIB, f"a cell left {left:.2f} GiB on the device"  # more than libraries' workspaces


@pytest.mark.parametrize("cell_id", ["gpt2_sa_qlora", "gpt2_sa_lora", "gpt2_sa_sft"])
def test_the_ledger_is_the_allocators(cell_id, trainer_of, device, measured):
    from tunegrid.run.footprint import baseline_bytes, trace, wrong_bytes

    def measure():
        baseline = baseline_bytes(device)
        trainer = trainer_of(cell_id)
        traced = trace(trainer, baseline)
        ledger = trainer.log.ledger
        return vars(ledger) | vars(traced) | {"wrong": wrong_bytes(ledger, traced, device)}

    assert measured(measure)["wrong"] == []


def test_events_agree_with_the_wall_clock(trainer_of, device, measured):
    import torch

    def measure():
        trainer = train(trainer_of("bert_sa_sft", updates=30), 5)
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for group in islice(trainer.updates(0), 5, 30):
            trainer.update(group)
        torch.cuda.synchronize(device)
        wall = time.perf_counter() - began
        return {"event_seconds": sum(trainer.meter.durations(trainer.meter.updates[5:])), "wall_seconds": wall}

    figures = measured(measure)
    assert math.isclose(*figures.values(), rel_tol=CLOCKS)


def test_the_ladder_holds_where_memory_really_runs_out(trainer_of, device, measured):
    import torch

    from tunegrid.run.device import free_memory

    def measure():
        trainer = trainer_of("bert_sa_sft", precision="bf16")
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        first, second = islice(trainer.updates(0), 2)
        trainer.update(first)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        trainer.update(first)
        activations = torch.cuda.max_memory_allocated(device) - held
        whole = float(trainer.accumulated(second, [])[0])
        free_memory(device)
        limit = held + SPARE * activations
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory, device)
        try:
            pieces = float(trainer.update(second))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        log, size = trainer.log, trainer.cell.recipe.per_device_train_batch_size
        sizes = {"micro_batch": log.micro_batch, "recipe_batch": size, "limit_bytes": int(limit)}
        return sizes | {"losses": [whole, pieces], "fallbacks": list(log.fallbacks)}

    figures = measured(measure)
    assert figures["micro_batch"] < figures["recipe_batch"]
    assert any(sentence.startswith("out of memory at update") for sentence in figures["fallbacks"])
    assert math.isclose(*figures["losses"], rel_tol=SAME_LOSS)  # the same update


def test_lost_updates_are_counted(trainer_of, measured):
    updates, high = 60, 2.0**40

    def measure():
        trainer = trainer_of("bert_sa_lora", updates=updates, precision="fp16")
        trainer.accelerator.scaler._init_scale = high  # far too high: the first updates overflow until it has come down
        train(trainer, updates)
        halvings = math.log2(high / trainer.accelerator.scaler.get_scale())
        return {"skipped": trainer.log.skipped, "halvings": halvings, "scheduled": trainer.stepper.schedule.last_epoch}

    figures = measured(measure)
    lost = len(figures["skipped"])
    assert lost > 0, "no update was lost, so nothing was checked"
    assert lost == figures["halvings"]  # each halved the scale once
    assert figures["scheduled"] == updates - lost  # and did not advance the schedule


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_waits_for_nothing(precision, trainer_of, measured):
    """Outside the model's own forward pass, in which transformers may look at a mask."""
    import torch

    def measure():
        trainer = train(trainer_of("bert_sa_sft", precision=precision), 3)
        trainer.model.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
        trainer.model.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("error"))
        torch.cuda.set_sync_debug_mode("error")  # the device's fixture takes it back
        trainer.update(next(trainer.updates(0)))
        return {}

    measured(measure)


def test_nf4_takes_less_than_lora_and_lora_less_than_full_fine_tuning(trainer_of, device, measured):
    import torch

    from tunegrid.run.device import free_memory

    def measure():
        peaks = {}
        for cell_id in ("gpt2_sa_qlora", "gpt2_sa_lora", "gpt2_sa_sft"):
            trainer = train(trainer_of(cell_id, precision="bf16", per_device_train_batch_size=2), 2)
            torch.cuda.reset_peak_memory_stats(device)
            trainer.update(next(trainer.updates(0)))
            peaks[cell_id] = torch.cuda.max_memory_allocated(device)
            del trainer
            free_memory(device)
        return peaks

    qlora, lora, full = measured(measure).values()
    assert qlora < lora < full
