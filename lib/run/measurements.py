"""A cell's measurements as parts of its record. In: what the stages left behind. Out: plain figures by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.data.splits import Splits
from lib.grid.cells import Cell
from lib.machine import cpu_name
from lib.run.build import ATTENTION, checkpoint_fingerprint, checkpoint_of
from lib.run.device import contended, used_by_others_gib
from lib.run.evaluation import Evaluation
from lib.run.footprint import Footprint, complete
from lib.run.meter import Meter, parameter_counts
from lib.run.training import Training


def measured(
    cell: Cell,
    splits: Splits | None,
    model: nn.Module,
    meter: Meter,
    training: Training,
    evaluation: Evaluation | None = None,
    footprint: Footprint | None = None,
) -> dict[str, Any]:
    """The measured parts of a record; those of a stage that did not run are None."""
    throughput = meter.throughput()
    return {
        "device": device_info(meter.device),
        "data": splits and data_info(cell, splits),
        "model": model_info(cell),
        "parameters": parameter_counts(model),
        "training": training_info(training) | {"seconds": meter.train_seconds(), "tokens": meter.train_tokens()},
        "evaluation": evaluation and evaluation_info(evaluation),
        "scores": evaluation.scores if evaluation else {},
        "memory": {
            "phases": meter.phases,
            "ledger": complete(training.memory, footprint) if footprint else training.memory,
        },
        "throughput": throughput
        | {
            "eval_samples_per_second": evaluation and evaluation.samples_per_second,
            "generated_tokens_per_second": footprint and footprint.generated_tokens_per_second,
        },
        "flops": footprint and flops_info(footprint, throughput["step_seconds_median"]),
    }


def device_info(device: torch.device) -> dict[str, Any]:
    """The device's name, how many threads a CPU run had, and what on a GPU bears on speed and memory."""
    cuda = device.type == "cuda"
    others = used_by_others_gib(device)
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": None if cuda else torch.get_num_threads(),
        "attention": ATTENTION,
        "tf32": False if cuda else None,  # `resolve_device` switches it off
        "used_by_others_gib": others,
        "contended": contended(device, others),
    }


def data_info(cell: Cell, splits: Splits) -> dict[str, Any]:
    """How many rows came from where, which revision of the data set that was, and the hash of them all."""
    return {
        "rows": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "origins": _below_root(splits.origins, cell.profile.data_root),
        "revision": splits.revision,
        "fingerprint": splits.fingerprint,
    }


def _below_root(origins: Mapping[str, str], root: Path | None) -> dict[str, str]:
    """Origins without the path of the folder that holds the data, so that two machines' records are alike."""
    return {name: origin.replace(f"{root}/", "") for name, origin in origins.items()}


def model_info(cell: Cell) -> dict[str, Any]:
    """Which weights the cell started from, and the class they were loaded into."""
    if cell.profile.random_weights:
        checkpoint = f"random weights, shape of {cell.backbone.checkpoint}"
    else:
        source, _ = checkpoint_of(cell.backbone, cell.profile)
        checkpoint = Path(source).name if Path(source).is_dir() else source
    return {
        "checkpoint": checkpoint,
        "fingerprint": checkpoint_fingerprint(cell),
        "architecture": cell.head.architecture,
    }


def training_info(training: Training) -> dict[str, Any]:
    """The course of training."""
    return {
        "updates": training.updates,
        "order": training.order,
        "precision": training.precision,
        "micro_batch": training.micro_batch,
        "fallbacks": training.fallbacks,
        "losses": training.losses,
        "final_learning_rate": training.learning_rates[-1] if training.learning_rates else None,
        "epoch_scores": training.epoch_scores,
        "chosen_epoch": training.chosen_epoch,
        "stopped": training.stopped,
    }


def evaluation_info(evaluation: Evaluation) -> dict[str, Any]:
    """How the test rows were predicted and scored."""
    return {
        "seconds": evaluation.seconds,
        "loss": evaluation.loss,
        "batch": evaluation.batch,
        "metric_sources": evaluation.sources,
    }


def flops_info(footprint: Footprint, step_seconds: float | int | None) -> dict[str, Any]:
    """FLOPs of an update, and how fast they were done beside the device's best."""
    achieved = footprint.flops_per_step / step_seconds if step_seconds else None
    peak = footprint.matmul_flops_per_second
    return {
        "flops_per_step": footprint.flops_per_step,
        "achieved_flops_per_second": achieved,
        "matmul_flops_per_second": peak,
        "mfu_percent": 100 * achieved / peak if achieved else None,
    }
