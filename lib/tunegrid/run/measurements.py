"""A cell's measurements, written into its record. In: what the stages left behind. Out: the record's measured parts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunegrid.data.splits import Splits
from tunegrid.grid.cells import Cell
from tunegrid.machine import cpu_name
from tunegrid.record.parts import (
    DataRecord,
    DeviceRecord,
    Dropped,
    FirstStep,
    Flops,
    Ledger,
    Memory,
    ModelRecord,
    Origins,
    Parameters,
    Phase,
    SplitRows,
    Throughput,
    TrainingRecord,
)
from tunegrid.record.ranks import RankRecord, RanksRecord
from tunegrid.record.record import Record, architecture_name
from tunegrid.run.build import ATTENTION, checkpoint_of
from tunegrid.run.course import Training
from tunegrid.run.device import contended, used_by_others_gib
from tunegrid.run.evaluation import Evaluation
from tunegrid.run.footprint import Footprint, complete
from tunegrid.run.meter import Meter, parameter_counts
from tunegrid.run.ranks import ALONE, Ranks, backend_of
from tunegrid.run.weights import checkpoint_fingerprint


def measured(
    record: Record,
    *,
    cell: Cell,
    splits: Splits | None,
    model: nn.Module,
    meter: Meter,
    training: Training,
    evaluation: Evaluation | None = None,
    footprint: Footprint | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Fill in the measured parts of a record; those of a stage that did not run stay None. All ranks measure together."""
    record.ranks = ranks_record(ranks, meter)
    record.device = device_record(meter.device)
    record.data = data_record(cell, splits) if splits else None
    record.model = model_record(cell)
    record.parameters = Parameters(**parameter_counts(model))  # type: ignore[arg-type]  # a mapping of counts and a share
    record.training = training_record(training, meter)
    record.evaluation = evaluation.part if evaluation else None
    record.scores = dict(evaluation.scores) if evaluation else {}
    record.memory = memory_record(training, meter, footprint)
    record.throughput = throughput_record(meter, evaluation, footprint)
    record.flops = flops_record(footprint, record.throughput.step_seconds_median) if footprint else None


def device_record(device: torch.device) -> DeviceRecord:
    """The device's name, the threads of a CPU run, and what affects speed and memory on a GPU."""
    cuda = device.type == "cuda"
    others = used_by_others_gib(device)
    return DeviceRecord(
        type="cuda" if cuda else "cpu",
        name=torch.cuda.get_device_name(device) if cuda else cpu_name(),
        threads=None if cuda else torch.get_num_threads(),
        attention=ATTENTION,
        tf32=False if cuda else None,  # `resolve_device` switches it off
        used_by_others_gib=others,
        contended=contended(device, others),
    )


def ranks_record(ranks: Ranks, meter: Meter) -> RanksRecord | None:
    """What each rank did; afterwards the meter counts what all of them did."""
    if ranks.count == 1:
        return None
    each = ranks.gathered(rank_record(meter))
    sizes = ranks.gathered(meter.sizes())
    meter.add(of_rank for rank, of_rank in enumerate(sizes) if rank != ranks.rank)
    return RanksRecord(count=ranks.count, backend=backend_of(meter.device), fsdp=ranks.holds_parts, each=each)


def rank_record(meter: Meter) -> RankRecord:
    """This rank's own figures."""
    memory, rates = memory_record(Training(), meter, None), meter.throughput()
    return RankRecord(
        rss_peak_gib=memory.peak("rss_peak_gib"),
        allocated_peak_gib=memory.peak("allocated_peak_gib"),
        reserved_peak_gib=memory.peak("reserved_peak_gib"),
        train_samples=sum(update.samples for update in meter.updates),
        train_samples_per_second=rates["train_samples_per_second"],
        train_tokens_per_second=rates["train_tokens_per_second"],
    )


def data_record(cell: Cell, splits: Splits) -> DataRecord:
    """How many rows came from where, the revision of the data set, and the hash of all rows.

    Origins do not name the folder that holds the data, so that the records of two machines are alike.
    """
    below = f"{cell.profile.data_root}/"
    return DataRecord(
        rows=SplitRows(train=len(splits.train), validation=len(splits.validation), test=len(splits.test)),
        origins=Origins(**{split: origin.replace(below, "") for split, origin in splits.origins.items()}),
        revision=splits.revision,
        fingerprint=splits.fingerprint,
        dropped=Dropped(**splits.dropped) if splits.dropped else None,
    )


def model_record(cell: Cell) -> ModelRecord:
    """Which weights the cell started from, and the class they were loaded into."""
    if cell.profile.random_weights:
        checkpoint = f"random weights, shape of {cell.backbone.checkpoint}"
    else:
        source, _ = checkpoint_of(cell.backbone, cell.profile)
        checkpoint = Path(source).name if Path(source).is_dir() else source
    return ModelRecord(
        checkpoint=checkpoint,
        fingerprint=checkpoint_fingerprint(cell),
        architecture=architecture_name(cell.head),
        adapted_modules=list(cell.head.adapted_modules),
    )


def training_record(training: Training, meter: Meter) -> TrainingRecord:
    """The course of training."""
    return TrainingRecord(
        seconds=meter.train_seconds(),
        tokens=meter.train_tokens(),
        gradient_norm=_known(training.gradient_norms[0]) if training.gradient_norms else None,
        clipped_norm=_known(training.clipped_norm),
        first_step=first_step_record(training.first_step),
        updates=training.updates,
        order=training.order,
        precision=training.precision,  # type: ignore[arg-type]  # one of the three, by `resolve_precision`
        micro_batch=training.micro_batch,
        fallbacks=list(training.fallbacks),
        losses=list(training.losses),
        final_learning_rate=training.learning_rates[-1] if training.learning_rates else None,
        epoch_scores=list(training.epoch_scores),
        chosen_epoch=training.chosen_epoch,
        stopped=training.stopped,
    )


def first_step_record(figures: Mapping[str, Any]) -> FirstStep | None:
    """The figures of the first step; None where they were not all taken."""
    return FirstStep(**figures) if set(figures) == set(FirstStep.__annotations__) else None


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def memory_record(training: Training, meter: Meter, footprint: Footprint | None) -> Memory:
    """Peaks of each phase, and the ledger; a footprint's ledger has its peak, too."""
    ledger = complete(training.memory, footprint) if footprint else training.memory
    phases = {name: Phase(**figures) for name, figures in meter.phases.items()}  # type: ignore[arg-type]  # seconds are there
    return Memory(phases=phases, ledger=Ledger(**dict.fromkeys(Ledger.__annotations__) | ledger))


def throughput_record(meter: Meter, evaluation: Evaluation | None, footprint: Footprint | None) -> Throughput:
    """Rates of training, of prediction and of generation: in a footprint on full-length inputs, otherwise on the test rows."""
    generating = evaluation or footprint
    return Throughput(
        **meter.throughput(),
        eval_samples_per_second=evaluation.samples_per_second if evaluation else None,
        generated_tokens_per_second=generating.generated_tokens_per_second if generating else None,
    )


def flops_record(footprint: Footprint, step_seconds: float | None) -> Flops:
    """FLOPs of an update, and how fast they were done beside the device's best."""
    achieved = footprint.flops_per_step / step_seconds if step_seconds else None
    peak = footprint.matmul_flops_per_second
    return Flops(
        flops_per_step=footprint.flops_per_step,
        achieved_flops_per_second=achieved,
        matmul_flops_per_second=peak,
        mfu_percent=100 * achieved / peak if achieved else None,
    )
