"""Measurements become the record's parts; their figures follow from what the stages measured."""

from dataclasses import replace
from pathlib import Path

import torch

from tunegrid.data.splits import Splits
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.record import data_record
from tunegrid.record.record import Ledger
from tunegrid.run.footprint import Footprint, complete, flops_of
from tunegrid.run.meter import Meter

CPU = torch.device("cpu")
SIZES = {"weights_bytes": 100, "gradients_bytes": 10, "optimizer_bytes": 20, "checkpoint_bytes": 10}
LEDGER = Ledger(**SIZES, activations_bytes=None, peak_bytes=None)
FOOTPRINT = Footprint(flops_per_step=3_000, matmul_flops_per_second=5_000.0, live_bytes=130, peak_bytes=180)


def test_mfu_is_what_an_update_achieves_of_the_devices_best():
    flops = flops_of(FOOTPRINT, 2.0)
    assert (flops.achieved_flops_per_second, flops.mfu_percent) == (1_500.0, 30.0)
    assert (flops_of(FOOTPRINT, None).achieved_flops_per_second, flops_of(FOOTPRINT, None).mfu_percent) == (None, None)
    ledger = complete(LEDGER, FOOTPRINT)  # activations have what is left of the peak
    assert (ledger.weights_bytes, ledger.peak_bytes, ledger.activations_bytes) == (100, 180, 50)


def test_a_training_that_stopped_at_once_has_an_empty_ledger_and_no_rates():
    meter = Meter(device=CPU)
    with meter.phase("train"):
        pass
    memory = meter.memory()
    assert set(vars(memory.ledger).values()) == {None}
    assert list(memory.phases) == ["train"]
    speed = meter.throughput()
    assert (speed.train_samples_per_second, speed.step_seconds, speed.measured_steps) == (None, [], 0)


def test_origins_do_not_name_the_folder_that_holds_the_data():
    root = Path("/data")
    origins = {"train": "/data/squad/train.jsonl", "validation": "10% of /data/squad/train.jsonl", "test": "hub"}
    rows = [{"id": "a"}]
    splits = Splits(train=rows * 3, validation=rows, test=[], origins=origins, revision=None)
    data = data_record(STUDY.cell("t5_qa_sft", replace(QUICK_PROFILE, data_root=root)), splits)
    assert data.origins == {"train": "squad/train.jsonl", "validation": "10% of squad/train.jsonl", "test": "hub"}
    assert data.rows == {"train": 3, "validation": 1, "test": 0}
