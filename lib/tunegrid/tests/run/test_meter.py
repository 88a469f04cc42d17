import ctypes
import gc
import time
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tunegrid.audits.training import memory_does_not_grow
from tunegrid.codecs.base import Feature, token_counts
from tunegrid.data.splits import Splits
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FOOTPRINT_CPU_PROFILE, QUICK_PROFILE
from tunegrid.record import data_record
from tunegrid.record.record import Ledger
from tunegrid.run.build import load_tokenizer
from tunegrid.run.footprint import Footprint, complete, trace, wrong_bytes, wrong_savings
from tunegrid.run.meter import (
    WARMUP_UPDATES,
    Meter,
    gpu_counter,
    ledger,
    parameter_counts,
    state_tensors,
    tensor_bytes,
    weight_tensors,
)
from tunegrid.run.prepare import make_codec, synthetic_features
from tunegrid.tests.small import CPU, fine_tuner, read_rows

MIB = 2**20


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def measured(clock, durations, *, samples=1, tokens=10, padded_tokens=10):
    """A meter after updates of these durations."""
    meter = Meter(device=CPU)
    for seconds in durations:
        with meter.update(samples=samples) as update:
            update.tokens = tokens
            update.padded_tokens = padded_tokens
            clock.now += seconds
    return meter


# Tensors that stay


@pytest.mark.parametrize(
    ("kept", "size", "passed"), [(0, 1, True), (9, 1, True), (10, 1, False), (1, 10**6, False)]
)
def test_tensors_that_updates_leave_are_counted_from_the_tenth_on(clock, kept, size, passed):
    gc.collect()  # of other tests
    meter = measured(clock, [1.0] * 9)
    held_tensors = [torch.zeros(10**6)]  # the model
    best_weights = []
    meter.note_tensors(best_weights, is_last=False)
    assert meter.held == []
    for _ in range(11):
        with meter.update(samples=1):
            pass
        meter.note_tensors(best_weights, is_last=False)  # which counts once
    held_tensors += [torch.zeros(size) for _ in range(kept)]
    best_weights.append(torch.zeros(10**7))
    meter.note_tensors(best_weights, is_last=True)
    first, last = meter.held
    assert last.updates - first.updates == 10
    assert last.tensors - first.tensors == kept
    passes, detail = memory_does_not_grow(SimpleNamespace(trainer=SimpleNamespace(meter=meter)))
    assert bool(passes) is passed, detail


# Time


def test_warm_up_updates_are_left_out_of_rates_and_kept_in_training_time(clock):
    meter = measured(clock, [9.0] * 3 + [0.5] * 2, samples=4, tokens=30, padded_tokens=40)
    throughput = meter.throughput()
    assert throughput.train_samples_per_second == 8.0
    assert throughput.train_tokens_per_second == 60.0
    assert throughput.train_steps_per_second == 2.0
    assert throughput.padding_share == 0.25
    assert throughput.warmup_steps == 3
    assert throughput.measured_steps == 2
    assert sum(meter.durations(meter.updates)) == 28.0


def test_steps_have_a_median_and_a_90th_percentile(clock):
    throughput = measured(clock, [0.0] * 3 + [1.0] * 9 + [5.0]).throughput()
    assert throughput.step_seconds_median == 1.0
    # 90 % of 11 steps up
    assert throughput.step_seconds_p90 == pytest.approx(4.6)


def test_a_run_that_ends_in_its_warm_up_has_no_rates(clock):
    throughput = measured(clock, [1.0] * WARMUP_UPDATES).throughput()
    assert throughput.train_samples_per_second is None
    assert throughput.step_seconds_median is None
    assert throughput.measured_steps == 0


# Memory


@pytest.fixture
def resettable():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip(
            "this system has no /proc/self/clear_refs that resets the high-water mark of memory"
        )


def test_seconds_joules_and_peaks_belong_to_the_innermost_phase_and_add_up_over_its_parts(
    clock, resettable
):
    meter = Meter(device=CPU, counter=lambda: 2 * clock.now)  # two watts

    def works(seconds, mib=1):
        clock.now += seconds
        torch.ones(mib * MIB // 4).sum()

    with meter.phase("train"):
        works(1.0)
        with meter.phase("validate"):
            works(10.0, 256)
        works(2.0)
    first_peak = meter.phases["train"].rss_peak_gib
    with meter.phase("train"):
        works(4.0, 128)
    # One that fails is measured all the same.
    with pytest.raises(RuntimeError), meter.phase("train"):
        works(8.0, -1)
    train = meter.phases["train"]
    validate = meter.phases["validate"]
    assert train.seconds == 15.0
    assert validate.seconds == 10.0
    assert train.gpu_energy_joules == 30.0
    assert validate.gpu_energy_joules == 20.0
    assert train.cpu_energy_joules is None
    memory = meter.memory(contended=True)  # others used the GPU
    assert [phase.gpu_energy_joules for phase in memory.phases.values()] == [None, None]
    assert validate.rss_peak_gib - first_peak == pytest.approx(0.25, abs=0.05)
    assert train.rss_peak_gib - first_peak == pytest.approx(0.125, abs=0.05)
    # A CPU has none.
    assert train.allocated_peak_gib is None
    assert train.reserved_peak_gib is None


def test_the_ledger_of_a_linear_layer_is_exact():
    layer = nn.Linear(3, 2)  # 6 weights and 2 biases of 4 bytes
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert ledger(layer, optimizer, tensor_bytes(p.grad for p in layer.parameters())) == Ledger(
        weights_bytes=32,
        gradients_bytes=32,
        optimizer_bytes=72,  # two moments, and a step count of 4 bytes a tensor
        checkpoint_bytes=32,
        activations_bytes=None,
        peak_bytes=None,
    )


def test_the_ledger_of_a_four_bit_layer_counts_packed_weights_and_scales():
    """64 x 32 weights in NF4 with double quantization."""
    packed = bitsandbytes.nn.Linear4bit(
        64, 32, bias=False, quant_type="nf4", compress_statistics=True
    ).to("cpu")
    # half a byte a weight; a byte a block of 64
    weights = 64 * 32 // 2
    scales = 64 * 32 // 64
    scales_of_scales = 4 + 4  # one block of 256, and their offset
    tables = 16 * 4 + 256 * 4  # the values that 4 bits and 8 bits stand for
    assert ledger(packed, None, None).weights_bytes == weights + scales + scales_of_scales + tables
    assert parameter_counts(packed).total_params == 64 * 32


# Joules of a counter in an object that answers as NVIDIA's library does.

CUDA = torch.device("cuda:0")


class Nvml:
    """NVIDIA's library: calls return 0 if they succeed, and write to what they are given."""

    def nvmlInit_v2(self):  # NVML's name
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        return int(uuid != b"GPU-1234")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, count):
        count._obj.value = 1_002_500
        return 0


@pytest.mark.parametrize(
    ("library", "uuid", "ranks", "joules"),
    [
        (Nvml(), "1234", 1, 1002.5),
        (Nvml(), "1234", 2, None),
        (Nvml(), "5", 1, None),
        (object(), "1234", 1, None),
    ],
    ids=["counter", "two GPUs share a cell", "unknown GPU", "no counter"],
)
def test_a_gpus_millijoules_become_joules(monkeypatch, library, uuid, ranks, joules):
    gpu = SimpleNamespace(uuid=uuid)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    counter = gpu_counter(CUDA, ranks)
    assert (counter and counter()) == joules


# Rows and their origins


def test_origins_do_not_name_the_folder_that_holds_the_data():
    root = Path("/data")
    origins = {
        "train": "/data/squad/train.jsonl",
        "validation": "10% of /data/squad/train.jsonl",
        "test": "hub",
    }
    rows = [{"id": "a"}]
    splits = Splits(train=rows * 3, validation=rows, test=[], origins=origins, revision=None)
    data = data_record(STUDY.cell("t5_qa_sft", replace(QUICK_PROFILE, data_root=root)), splits)
    assert data.origins == {
        "train": "squad/train.jsonl",
        "validation": "10% of squad/train.jsonl",
        "test": "hub",
    }
    assert data.rows == {"train": 3, "validation": 1, "test": 0}


# Footprints: synthetic rows, FLOPs and bytes


@pytest.mark.parametrize(
    "cell_id", ["bert_sa_lora", "bert_sum_sft", "gpt2_sum_qlora", "t5_qa_lora"]
)
def test_synthetic_rows_fill_the_recipes_lengths(cell_id):
    cell = STUDY.cell(cell_id, FOOTPRINT_CPU_PROFILE)
    codec = make_codec(cell, load_tokenizer(cell))
    features = synthetic_features(cell, codec)
    assert len(features) == cell.recipe.max_steps
    batch = codec.collate(features[:2])
    length = cell.recipe.max_length
    if "decoder_input_ids" in batch:
        length += cell.recipe.max_target_length
    assert token_counts(batch) == (2 * length, 2 * length)
    assert int(batch["input_ids"].max()) < cell.backbone.vocabulary + 1


def gpt2(cell_id):
    """A trainer with four rows of 64 tokens."""
    trainer = fine_tuner(
        cell_id,
        read_rows("amazon_polarity/train")[:4],
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
    )
    trainer.features = [Feature(example=i, input_ids=[5 + i] * 64, target=1) for i in range(4)]
    return trainer


def test_flops_of_an_update_worked_out_from_the_layers():
    # A layer of micro GPT-2, 64 tokens, 128 wide: c_attn 128 x 384, c_proj 128 x 128, mlp 128 x 512
    # twice; attention takes 64 x 64 x 128 twice. Two FLOPs a product; three layers; score is 128 x
    # 2; backward is twice forward.
    layer = 2 * 64 * (128 * 384 + 128 * 128 + 2 * 128 * 512) + 2 * 2 * 64 * 64 * 128
    assert trace(gpt2("gpt2_sa_sft"), 0).flops_per_step == 3 * (3 * layer + 2 * 64 * 128 * 2)


@pytest.mark.parametrize("cell_id", ["gpt2_sa_sft", "gpt2_sa_lora", "gpt2_sa_qlora"])
def test_the_tensors_held_after_a_step_are_the_ledgers_to_the_byte(cell_id):
    trainer = gpt2(cell_id)
    footprint = trace(trainer, 0)
    full_ledger = complete(trainer.log.ledger, footprint)
    assert footprint.live_bytes == full_ledger.tensor_bytes
    assert full_ledger.activations_bytes == footprint.peak_bytes - footprint.live_bytes >= 0


@pytest.mark.parametrize("cell_id", ["gpt2_sa_lora", "gpt2_sa_qlora"])
def test_the_peak_of_an_update_is_the_one_that_torchs_profiler_sees(cell_id):
    trainer = gpt2(cell_id)
    footprint = trace(trainer, 0)
    held = tensor_bytes(weight_tensors(trainer.model) + state_tensors(trainer.optimizer))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.update(next(trainer.updates(0)))
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    allocated = list(accumulate(event.nbytes() for event in events))
    # It also sees token ids, masks and what an operator holds only for itself.
    assert 1 <= (held + max(allocated)) / footprint.peak_bytes < 1.03


def make_ledger(weights, gradients, moments):
    unknown = Ledger(**dict.fromkeys(Ledger.__annotations__))
    return replace(
        unknown, weights_bytes=weights, gradients_bytes=gradients, optimizer_bytes=moments
    )


@pytest.mark.parametrize(
    ("device", "live_bytes", "sentences"),
    [
        (CPU, 130, []),
        (CPU, 131, ["the ledger holds 130 bytes, the device 131"]),
        # 2 % of 130 bytes, and 4 MiB
        (CUDA, 130 + 2 + 4 * MIB, []),
        (CUDA, 130 + 3 + 4 * MIB, ["the ledger holds 130 bytes, the device 4,194,437"]),
    ],
)
def test_bytes_that_the_ledger_does_not_hold_are_mentioned(device, live_bytes, sentences):
    footprint = Footprint(
        flops_per_step=1, matmul_flops_per_second=1.0, live_bytes=live_bytes, peak_bytes=0
    )
    assert wrong_bytes(make_ledger(100, 10, 20), footprint, device) == sentences


# 124,441,344 parameters of GPT-2 with its score and 294,912 of LoRA take 498,945,024 bytes in fp32,
# their gradients and two moments 1,496,835,072, of which 5 % are 74,841,753.6.
@pytest.mark.parametrize(
    ("cell_id", "weights", "gradients", "moments", "sentences"),
    [
        ("gpt2_sa_qlora", 10**8, 10**6, 2 * 10**6, []),
        ("gpt2_sa_sft", 5 * 10**8, 5 * 10**8, 10**9, []),
        (
            "gpt2_sa_qlora",
            498_945_024,
            0,
            0,
            ["quantized weights take 498,945,024 bytes, unquantized ones 498,945,024"],
        ),
        (
            "gpt2_sa_lora",
            5 * 10**8,
            74_841_754,
            0,
            [
                "gradients and optimizer take 74,841,754 bytes, "
                "those of full fine-tuning 1,496,835,072"
            ],
        ),
    ],
)
def test_a_method_that_saves_too_little_is_mentioned(
    cell_id, weights, gradients, moments, sentences
):
    cell = STUDY.cell(cell_id, FOOTPRINT_CPU_PROFILE)
    counted = make_ledger(weights, gradients, moments)
    assert wrong_savings(cell, counted, 124_441_344 + 294_912) == sentences
