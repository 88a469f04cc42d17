"""Made-up records of finished cells, changed or with points per row, and files of them."""

import json
from dataclasses import replace

import numpy as np

from tunegrid.gate.noise import make_scale
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.record import Record, new_record, to_json
from tunegrid.record.checks import EVERY_CELL, PART_AUDITS
from tunegrid.record.io import adapter
from tunegrid.record.record import jsonable
from tunegrid.runs import examples
from tunegrid.runs.files import read_list
from tunegrid.runs.seal import add_seal

CELLS = {cell.id: cell for cell in STUDY.cells(QUICK_PROFILE)}
PHASE = {
    "seconds": 1.5,
    "rss_peak_gib": 0.75,
    "allocated_peak_gib": None,
    "reserved_peak_gib": None,
    "gpu_energy_joules": None,
    "cpu_energy_joules": None,
}
FIRST_STEP = {
    "tokens": "0" * 16,
    "types": {"layer 0 attention": "float32", "head": "float32"},
    "digits": {"layer 0 attention": "float32", "head": "float32"},
    "weights": {"layer 0 attention": 10.0, "head": 1.0},
    "stream": "1" * 16,
    "drawn": "2" * 16,
    "probe_loss": 0.7,
    "probe_gradients": {"layer 0 attention": 0.2, "head": 2.0},
    "gradients": {"layer 0 attention": 0.1, "head": 1.0},
    "moved": {"layer 0 attention": 0.01, "head": 0.05},
    "generated": None,
    "metrics": {"accuracy": 50.0, "f1_macro": 50.0},
    "probe": "3" * 16,
    "computed": {"layer 0 attention": "bfloat16"},
    "probe_reached": {"layer 0 attention": 4, "head": 2},
    "reached": {"layer 0 attention": 4, "head": 2},
    "decoded": 1e-6,
    "predicted": "0123456789abcdef",
    "untrained": [100.0, 0.0],
    "test_tokens": "0123456789abcdef",
    "tokens_read": 52,
    "modules": None,
}
FINDING = {
    "passed": True,
    "detail": "199 tensors",
    "without_model": None,
    "value": None,
    "limit": None,
}
MEASURED = {
    "device": {
        "type": "cpu",
        "name": "a CPU",
        "threads": 1,
        "attention": "sdpa",
        "tf32": None,
        "used_by_others_gib": None,
        "contended": None,
        "instructions": "AVX512",
        "energy": "CPU: no RAPL counters",
    },
    "data": {
        "rows": {"train": 70, "validation": 15, "test": 15},
        "origins": {
            "train": "train.jsonl",
            "validation": "15% of train.jsonl",
            "test": "15% of train.jsonl",
        },
        "revision": None,
        "fingerprint": "0123456789abcdef",
        "dropped": {"train": 3, "validation": 1},
    },
    "model": {
        "checkpoint": "bert-micro",
        "fingerprint": "f" * 16,
        "architecture": "BertMLPClassifier",
        "adapted_modules": ["fc1", "fc2"],
    },
    "parameters": {"trainable_params": 25, "total_params": 1000, "trainable_percent": 2.5},
    "training": {
        "seconds": 12.25,
        "updates": 2,
        "precision": "fp32",
        "order": "0123456789abcdef",
        "tokens": 5000,
        "gradient_norm": 2.5,
        "clipped_norm": 1.0,
        "first_step": FIRST_STEP,
        "micro_batch": 16,
        "fallbacks": [],
        "losses": [0.7, 0.5],
        "final_learning_rate": 5e-5,
        "epoch_scores": [],
        "chosen_epoch": None,
        "planned": None,
        "asked": None,
        "stopped": None,
    },
    "evaluation": {
        "seconds": 0.5,
        "loss": 0.4,
        "batch": 64,
        "metric_sources": {"accuracy": "built-in", "f1": "built-in"},
        "precision": "fp32",
        "generated_tokens": None,
    },
    "memory": {
        "cells_before": None,
        "phases": {"load": PHASE, "train": PHASE | {"rss_peak_gib": 1.25}, "evaluate": PHASE},
        "ledger": {
            "weights_bytes": 4000,
            "gradients_bytes": 100,
            "optimizer_bytes": 200,
            "checkpoint_bytes": 100,
            "activations_bytes": None,
            "peak_bytes": None,
        },
    },
    "throughput": {
        "train_samples_per_second": 123.4,
        "train_tokens_per_second": 4000.0,
        "train_steps_per_second": 8.0,
        "step_seconds_median": 0.12,
        "step_seconds_p90": 0.15,
        "padding_share": 0.1,
        "step_seconds": [0.12, 0.13],
        "measured_steps": 2,
        "warmup_steps": 0,
        "eval_samples_per_second": 30.0,
        "generated_tokens_per_second": None,
    },
    "examples": {
        "file": "0123456789abcdef.parquet",
        "rows_hash": "0123456789abcdef",
        "texts": None,
    },
    "status": "passed",
}
SCORED = {
    "sa": {"scores": {"accuracy": 91.04, "f1_macro": 91.0}, "bounds": {"accuracy": 88.0}},
    "qa": {"scores": {"exact_match": 85.0, "f1": 91.04}, "bounds": {"f1": 88.0}},
    "sum": {
        "scores": {
            "rouge1": 93.0,
            "rouge2": 86.0,
            "rougeL": 91.0,
            "rougeLsum": 91.04,
            "bertscore_f1": 95.0,
        },
        "bounds": {"rougeLsum": 88.0},
    },
}
MIB = 2**20
FOOTPRINT = {
    "profile": "footprint",
    "data": None,
    "evaluation": None,
    "scores": {},
    "bounds": {},
    "flops": {
        "flops_per_step": 10**9,
        "achieved_flops_per_second": 2e10,
        "matmul_flops_per_second": 8e10,
        "mfu_percent": 25.0,
    },
    "memory": {
        "cells_before": None,
        "phases": {"train": PHASE},
        "ledger": {
            "weights_bytes": 400 * MIB,
            "gradients_bytes": 3 * MIB,
            "optimizer_bytes": 6 * MIB,
            "checkpoint_bytes": 3 * MIB,
            "activations_bytes": 103 * MIB,
            "peak_bytes": 512 * MIB,
        },
    },
}
# Numbers of test rows per task in the quick profile.
ROWS = {"sa": 512, "qa": 384, "sum": 400}


def complete_json(cell_id="bert_sa_lora", **changes):
    """A finished cell's record as JSON, with changes to its fields; losses differ between seeds."""
    cell = CELLS[cell_id]
    start = to_json(new_record(cell))
    seed = (changes.get("seeds") or {}).get("seed") or 0
    training = MEASURED["training"]
    parts = {
        "recipe": start["recipe"] | {"max_steps": 1},
        "audits": [FINDING | {"name": name} for name in audit_ids(cell)],
        "training": training | {"losses": [loss + seed / 1024 for loss in training["losses"]]},
    }
    return start | MEASURED | parts | SCORED[cell.task.id] | changes


def audit_ids(cell):
    """The names of the audits that every complete run of the cell has."""
    names = [*EVERY_CELL, *PART_AUDITS[cell.task.id]]
    if cell.method.adapts:
        names += PART_AUDITS["adapter"]
    if cell.method.quantization:
        names += PART_AUDITS["quantization"]
    return names


def complete(cell_id="bert_sa_lora", **changes) -> Record:
    """Like `complete_json`, but a record; its parts must be valid, but its status need not fit."""
    return adapter().validate_json(json.dumps(complete_json(cell_id, **changes)))


def altered(record, place, value):
    """A record, or a part of one, with another value at a path such as "training.losses"."""
    name, _, rest = place.partition(".")
    if rest:
        value = altered(getattr(record, name), rest, value)
    return replace(record, **{name: value})


def begun(
    cell="bert_sa_lora", losses=(0.7, 0.5), training=MEASURED["training"], **changes
) -> Record:
    """A record of a cell that has made only its first updates."""
    parts = {
        "status": "begun",
        "first_updates": len(losses),
        "training": training | {"losses": list(losses), "updates": len(losses)},
        "scores": {},
        "bounds": {},
        "evaluation": None,
        "examples": None,
    }
    return complete(cell, **parts | changes)


def with_test_rows(count):
    """A record's part on its data, with this number of test rows."""
    return MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": count}}


def hits(count, right, lost=0):
    return [100.0 if n < right - lost else 0.0 for n in range(count)]


def get_record(cell, points=None, seed=0, ids=None, **changes):
    """A record whose scores are the means of these points; it keeps the points of each row."""
    task = CELLS[cell].task
    scores = dict.fromkeys(task.bounded_scores, 90.0)
    parts = {"examples": None, "bounds": {task.main_score: 1.0}, "seeds": make_seeds(seed)}
    if points is not None:
        count = len(next(iter(points.values())))
        ids = ids or [f"r{n}" for n in range(count)]
        kept = examples.write(ids, points, [str(n % 2) for n in range(count)])
        parts |= {"examples": vars(kept), "data": with_test_rows(count)}
        for metric, values in points.items():
            scores[metric] = jsonable(float(np.mean(values)))
    return complete(cell, **parts | {"scores": scores} | changes)


def trained(cell, *scores, **changes):
    """Yields a record for each of these main scores, with seeds 0, 1, and so on.

    Each record has enough test rows to resolve small deviations.
    """
    for seed, score in enumerate(scores):
        parts = {
            "scores": {CELLS[cell].task.main_score: score},
            "bounds": {},
            "examples": None,
            "data": with_test_rows(10_000),
            "seeds": make_seeds(seed),
        }
        yield complete(cell, **parts | changes)


def scored(cell, score, seed=0, **seeds):
    """A complete record with this main score on many rows, and a bound of 50.

    A score of 0 or less loses its sign, and the audit `no_leakage` fails, too.
    """
    audits = [
        {"name": name, "passed": name != "no_leakage" or score > 0, "detail": "3 rows of both"}
        for name in audit_ids(CELLS[cell])
    ]
    # Different for each cell and seed
    loss = [*CELLS].index(cell) + seed / 1e5
    return complete(
        cell,
        audits=audits,
        data=with_test_rows(10_000),
        evaluation=MEASURED["evaluation"] | {"loss": loss},
        examples=None,
        bounds={"accuracy": 50.0},
        scores={"accuracy": abs(score), "f1_macro": abs(score)},
        seeds=make_seeds(seed) | seeds,
    )


def draws(sd, df, rows, metric="accuracy"):
    """`df` pairs of scores around 50, each with this standard deviation on the metric's scale."""
    scale = make_scale(rows, metric)
    reach = sd / 2**0.5
    pair = [scale.shift(50.0, -reach), scale.shift(50.0, reach)]
    return [pair] * df


def make_seeds(seed, draw=None):
    """The part of a record that names its seeds."""
    return {"seed": seed, "split_seed": 42, "perturbation": draw}


def saved(path, *records):
    """Writes a run's file with these records, or with rows of another benchmark."""
    rows = []
    for record in records:
        facts = to_json(record) if isinstance(record, Record) else record
        rows.append({"extra_info": facts})
    path.write_text(json.dumps(sealed({"benchmarks": rows})))
    return path


def run_file(path, records, dirty=False):
    """Writes a run's file as pytest-benchmark names its rows, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for record in records:
        name = record.cell
        fullname = f"benchmarks::{name}"
        rows.append({"name": name, "fullname": fullname, "extra_info": to_json(record)})
    path.write_text(json.dumps(sealed({"benchmarks": rows, "commit_info": {"dirty": dirty}})))
    return path


def sealed(run):
    """The run with the seals that `save` adds."""
    return add_seal(run | {"benchmarks": [add_seal(row) for row in run["benchmarks"]]})


def read_records(path):
    """The records of a saved run by cell id."""
    return {record.cell: record for record in read_list(path)}
