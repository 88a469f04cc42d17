"""`pytest -m gpu`: in a few minutes, whether this GPU's figures can be trusted. From random weights, without a hub.

Each test measures one thing twice, in two ways that must agree; `tunegrid.run.device` holds what counts as agreement. The
figures go to `--benchmark-json`; where all pass, they can be trusted. No GPU has run this yet.
"""

import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[1]
SPARE = 0.6  # of an update's activations: what the ladder is left with
SECOND_PROCESS = """
from tunegrid.run.device import contended, resolve_device
device = resolve_device("cuda:{index}")
print(contended(device, 0.0))
"""


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
    from tunegrid.grid.profiles import FOOTPRINT_PROFILE
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
def agree(benchmark):
    """Runs a check, keeps its figures, and fails with what it said."""

    def run(check):
        benchmark.group = "gpu"
        sentences, figures = benchmark.pedantic(check, rounds=1)
        benchmark.extra_info.update(figures, sentences=sentences)
        assert not sentences, "; ".join(sentences)

    return run


def train(trainer, updates):
    for group in islice(trainer.updates(0), updates):
        trainer.update(group)
    trainer.part()  # brings to the host what is still on the device
    return trainer


def test_a_cell_leaves_nothing_behind(trainer_of, device, agree):
    import torch

    from tunegrid.run.device import free_memory, left_behind
    from tunegrid.run.footprint import baseline_bytes

    def check():
        before = baseline_bytes(device)
        train(trainer_of("bert_sa_lora", precision="fp16"), 3)  # accelerate ties fp16's optimizer into a cycle
        held = torch.cuda.memory_allocated(device)
        free_memory(device)
        after = torch.cuda.memory_allocated(device)
        return left_behind(before, after), {"before_bytes": before, "held_bytes": held, "after_bytes": after}

    agree(check)


@pytest.mark.parametrize("cell_id", ["gpt2_sa_qlora", "gpt2_sa_lora", "gpt2_sa_sft"])
def test_the_ledger_is_the_allocators(cell_id, trainer_of, device, agree):
    from tunegrid.run.footprint import baseline_bytes, trace, wrong_bytes

    def check():
        baseline = baseline_bytes(device)
        trainer = trainer_of(cell_id)
        traced = trace(trainer, baseline)
        ledger = trainer.log.ledger
        return wrong_bytes(ledger, traced, device), vars(ledger) | vars(traced)

    agree(check)


def test_events_agree_with_the_wall_clock(trainer_of, device, agree):
    import torch

    from tunegrid.run.device import clocks_differ

    def check():
        trainer = train(trainer_of("bert_sa_sft", updates=30), 5)
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for group in islice(trainer.updates(0), 5, 30):
            trainer.update(group)
        torch.cuda.synchronize(device)
        wall = time.perf_counter() - began
        events = sum(trainer.meter.durations(trainer.meter.updates[5:]))
        return clocks_differ(events, wall), {"event_seconds": events, "wall_seconds": wall}

    agree(check)


def test_the_ladder_holds_where_memory_really_runs_out(trainer_of, device, agree):
    import torch

    from tunegrid.run.device import free_memory, ladder_broken

    def check():
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
        with torch.no_grad():
            whole = trainer.mean_loss(second)
        free_memory(device)
        limit = held + SPARE * activations
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory, device)
        try:
            pieces = float(trainer.update(second))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        log, size = trainer.log, trainer.cell.recipe.per_device_train_batch_size
        figures = {"micro_batch": log.micro_batch, "limit_bytes": int(limit), "losses": [whole, pieces]}
        return ladder_broken(log.fallbacks, log.micro_batch, size, (whole, pieces)), figures

    agree(check)


def test_lost_updates_are_counted(trainer_of, agree):
    import math

    from tunegrid.run.device import skips_miscounted

    updates, high = 60, 2.0**40

    def check():
        trainer = trainer_of("bert_sa_lora", updates=updates, precision="fp16")
        trainer.accelerator.scaler._init_scale = high  # far too high: the first updates overflow until it has come down
        train(trainer, updates)
        halvings = math.log2(high / trainer.accelerator.scaler.get_scale())
        skipped, scheduled = trainer.log.skipped, trainer.stepper.schedule.last_epoch
        return skips_miscounted(skipped, halvings, updates, scheduled), {"skipped": skipped, "halvings": halvings}

    agree(check)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_waits_for_nothing(precision, trainer_of, agree):
    """Outside the model's own forward pass, in which transformers may look at a mask."""
    import torch

    def check():
        trainer = train(trainer_of("bert_sa_sft", precision=precision), 3)
        trainer.model.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
        trainer.model.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("error"))
        sentences = []
        try:
            torch.cuda.set_sync_debug_mode("error")
            trainer.update(next(trainer.updates(0)))
        except RuntimeError as error:
            sentences = [f"an update in {precision} waits for the device: {str(error).splitlines()[0]}"]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sentences, {}

    agree(check)


def test_nf4_takes_less_than_lora_and_lora_less_than_full_fine_tuning(trainer_of, device, agree):
    import torch

    from tunegrid.run.device import free_memory, not_smaller

    def check():
        peaks = {}
        for cell_id in ("gpt2_sa_qlora", "gpt2_sa_lora", "gpt2_sa_sft"):
            trainer = train(trainer_of(cell_id, precision="bf16", per_device_train_batch_size=2), 2)
            torch.cuda.reset_peak_memory_stats(device)
            trainer.update(next(trainer.updates(0)))
            peaks[cell_id] = torch.cuda.max_memory_allocated(device)
            del trainer
            free_memory(device)
        return not_smaller(peaks), peaks

    agree(check)


def test_two_workers_on_one_card_know_of_each_other(device, agree):
    from tunegrid.run.device import CLAIMS, not_shared

    def check():
        code = SECOND_PROCESS.format(index=device.index)
        answer = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout
        own = device.index in CLAIMS.shared
        return not_shared(own=own, other=answer.strip() == "True"), {"own": own, "other": answer.strip()}

    agree(check)
