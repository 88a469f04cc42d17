import ctypes
import gc
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from torch import nn

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
    tensor_bytes,
)
from tunegrid.run.prepare import make_codec, synthetic_features
from tunegrid.tests.small import CPU, fine_tuner, read_rows

MIB = 2**20


class HandClock:
    """A clock that only the test moves."""

    now = 0.0

    def mark(self):
        return self.now

    def seconds(self, earlier, later):
        return later - earlier


def measured(durations, *, between=0.0, samples=1, tokens=10, padded_tokens=10):
    """A meter after updates of these durations, with as many seconds of something else between
    them.
    """
    meter = Meter(device=CPU)
    clock = HandClock()
    meter.mark = clock.mark
    for seconds in durations:
        with meter.update(samples=samples) as update:
            update.tokens = tokens
            update.padded_tokens = padded_tokens
            clock.now += seconds
        clock.now += between
    return meter


# Tensors that stay


@pytest.mark.parametrize(
    ("kept", "size", "passed"), [(0, 1, True), (9, 1, True), (10, 1, False), (1, 10**6, False)]
)
def test_tensors_that_updates_leave_are_counted_from_the_tenth_on(kept, size, passed):
    gc.collect()  # of other tests
    meter = measured([1.0] * 9)
    base = torch.zeros(10**6)
    best = []
    left = []
    meter.note_tensors(best, is_last=False)
    assert meter.held == []
    for _ in range(11):
        with meter.update(samples=1):
            pass
        meter.note_tensors(best, is_last=False)  # which counts once
    left += [torch.zeros(size) for _ in range(kept)]
    best.append(torch.zeros(10**7))  # the weights of the best epoch
    meter.note_tensors(best, is_last=True)
    first, last = meter.held
    assert last.updates - first.updates == 10
    assert last.tensors - first.tensors == kept
    assert len(base) == 10**6
    passes, detail = memory_does_not_grow(SimpleNamespace(trainer=SimpleNamespace(meter=meter)))
    assert bool(passes) is passed, detail


# Time


def test_warm_up_updates_are_left_out_of_rates_and_kept_in_training_time():
    meter = measured([9.0, 9.0, 9.0, 1.0, 1.0], samples=4)
    throughput = meter.throughput()
    assert throughput.train_samples_per_second == 4.0
    assert throughput.train_steps_per_second == 1.0
    assert throughput.warmup_steps == 3
    assert throughput.measured_steps == 2
    assert sum(meter.durations(meter.updates)) == 29.0


def test_rates_by_hand():
    throughput = measured([0.5] * 5, tokens=30, padded_tokens=40).throughput()
    assert throughput.train_tokens_per_second == 60.0
    assert throughput.padding_share == 0.25
    steps = measured([0.0] * 3 + [1.0] * 9 + [5.0]).throughput()
    # 90 % of 11 steps up
    assert steps.step_seconds_median == 1.0
    assert steps.step_seconds_p90 == pytest.approx(4.6)
    short = measured([1.0] * WARMUP_UPDATES).throughput()  # too short to measure
    assert short.train_samples_per_second is None
    assert short.step_seconds_median is None
    assert short.measured_steps == 0


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
    resettable, monkeypatch
):
    clock = HandClock()
    meter = Meter(device=CPU, counter=lambda: 2 * clock.now)  # two watts
    monkeypatch.setattr(time, "perf_counter", clock.mark)

    def works(seconds, mib=1):
        clock.now += seconds
        torch.ones(mib * MIB // 4).sum()

    with meter.phase("train"):
        works(1.0)
        with meter.phase("validate"):
            works(10.0, 256)
        works(2.0)
    first = meter.phases["train"].rss_peak_gib
    with meter.phase("train"):
        works(4.0, 128)
    # One that fails is measured all the same
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
    assert {phase.gpu_energy_joules for phase in memory.phases.values()} == {None}
    assert validate.rss_peak_gib - first == pytest.approx(0.25, abs=0.05)
    assert train.rss_peak_gib - first == pytest.approx(0.125, abs=0.05)
    # a CPU has none
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


def test_a_gpus_millijoules_become_joules_and_without_a_counter_there_are_none(monkeypatch):
    def joules(library, uuid="1234", **more):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid)
        )
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
        return (gpu_counter(CUDA, **more) or (lambda: None))()

    assert joules(Nvml()) == 1002.5
    # Two GPUs share a cell; no counter
    assert joules(Nvml(), ranks=2) is joules(Nvml(), uuid="5") is joules(object()) is None


# Measurements become the record's parts; their figures follow from what the stages measured.


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


#


CELLS = {cell.id: cell for cell in STUDY.cells(FOOTPRINT_CPU_PROFILE)}
REVIEWS = read_rows("amazon_polarity/train")[:16]


def get_codec(cell_id):
    return make_codec(CELLS[cell_id], load_tokenizer(CELLS[cell_id]))


# Synthetic rows


@pytest.mark.parametrize(
    "cell_id", ["bert_sa_lora", "bert_sum_sft", "gpt2_sum_qlora", "t5_qa_lora"]
)
def test_synthetic_rows_fill_the_recipes_lengths(cell_id):
    codec = get_codec(cell_id)
    recipe = CELLS[cell_id].recipe
    features = synthetic_features(CELLS[cell_id], codec)
    assert len(features) == recipe.max_steps
    batch = codec.collate(features[:2])
    separate = "decoder_input_ids" in batch
    assert (
        token_counts(batch)
        == (2 * (recipe.max_length + (recipe.max_target_length if separate else 0)),) * 2
    )
    assert int(batch["input_ids"].max()) < CELLS[cell_id].backbone.vocabulary + 1


# FLOPs


def gpt2(cell_id, **changes):
    trainer = fine_tuner(
        cell_id,
        REVIEWS,
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        **changes,
    )
    trainer.features = [Feature(example=i, input_ids=[5 + i] * 64, target=1) for i in range(4)]
    return trainer


def test_flops_of_an_update_worked_out_from_the_layers():
    # A layer of micro GPT-2, 64 tokens, 128 wide: c_attn 128 x 384, c_proj 128 x 128, mlp 128 x 512
    # twice; attention takes 64 x 64 x 128 twice. Two FLOPs a product; three layers; score is 128 x
    # 2; backward is twice forward.
    layer = 2 * 64 * (128 * 384 + 128 * 128 + 2 * 128 * 512) + 2 * 2 * 64 * 64 * 128
    assert trace(gpt2("gpt2_sa_sft"), 0).flops_per_step == 3 * (3 * layer + 2 * 64 * 128 * 2)


# Bytes


@pytest.mark.parametrize("cell_id", ["gpt2_sa_sft", "gpt2_sa_lora", "gpt2_sa_qlora"])
def test_the_tensors_held_after_a_step_are_the_ledgers_to_the_byte(cell_id):
    trainer = gpt2(cell_id)
    traced = trace(trainer, 0)
    ledger = complete(trainer.log.ledger, traced)
    rest = ledger.weights_bytes + ledger.gradients_bytes + ledger.optimizer_bytes
    assert traced.live_bytes == rest
    assert ledger.activations_bytes == traced.peak_bytes - rest >= 0


# Expectations


def make_ledger(weights, gradients, moments):
    rest = dict.fromkeys(("checkpoint_bytes", "activations_bytes", "peak_bytes"))
    return Ledger(weights_bytes=weights, gradients_bytes=gradients, optimizer_bytes=moments, **rest)


TOTAL = 124_441_344 + 294_912  # GPT-2 with its score, and LoRA's parameters
PLAIN = 4 * TOTAL
FULL = 3 * 4 * TOTAL


@pytest.mark.parametrize(
    ("cell_id", "sizes", "more", "said"),
    [
        ("gpt2_sa_qlora", (10**8, 10**6, 2 * 10**6), 0, []),
        ("gpt2_sa_sft", (5 * 10**8, 5 * 10**8, 10**9), 0, []),
        ("gpt2_sa_sft", (100, 10, 20), 1, ["the ledger holds 130 bytes, the device 131"]),
        (
            "gpt2_sa_qlora",
            (PLAIN, 0, 0),
            0,
            [f"quantized weights take {PLAIN:,} bytes, unquantized ones {PLAIN:,}"],
        ),
        (
            "gpt2_sa_lora",
            (5 * 10**8, FULL // 20 + 1, 0),
            0,
            [
                f"gradients and optimizer take {FULL // 20 + 1:,} bytes, those of full fine-tuning {FULL:,}"
            ],
        ),
    ],
)
def test_bytes_that_are_not_as_expected_are_mentioned(cell_id, sizes, more, said):
    ledger = make_ledger(*sizes)
    traced = Footprint(
        flops_per_step=1, matmul_flops_per_second=1.0, live_bytes=sum(sizes) + more, peak_bytes=0
    )
    assert wrong_bytes(ledger, traced, CPU) + wrong_savings(CELLS[cell_id], ledger, TOTAL) == said
