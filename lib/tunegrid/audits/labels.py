"""Audits how updates ran: passes, recomputation, precision, device, ranks and attention."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.codecs.features import chunks
from tunegrid.grid.methods import Answer
from tunegrid.run.build import attention
from tunegrid.run.device import FUSED, keeps_digits
from tunegrid.run.probe import get_logits, keep_state
from tunegrid.run.ranks import Ranks, local_shard
from tunegrid.run.train import Trainer

PRECISION_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ATTENTION_CALL = "scaled_dot_product_attention"


def updates_run_as_labelled(evidence: Evidence) -> Answer:
    """The first and last updates ran as recorded, for example in micro-batch size and precision.

    Hooks noted the number of rows in each forward pass, the layers that were at least partly
    recomputed in the backward pass, and the types and devices of linear layers' outputs. Attention
    is checked afterwards, in training mode.
    """
    trainer = evidence.trainer
    watched = trainer.log.watched
    if not watched:
        return None
    faults = []
    for facts in watched:
        for fault in update_faults(evidence, facts):
            faults.append(f"update {facts['update'] + 1}: {fault}")
    ranks = trainer.ranks
    held_values = sum(ranks.gather(sum(local_shard(p).numel() for p in trainer.stepped.values())))
    copies = held_values / sum(p.numel() for p in trainer.parameters.values())
    if copies != (1 if ranks.holds_parts else ranks.count):
        faults.append(f"{ranks.count} ranks hold {copies:.2f} times the model")
    calls = attention_calls(evidence)
    sdpa_calls, softmax_calls = calls[ATTENTION_CALL], calls["softmax"]
    described = f"by a softmax {softmax_calls} times"
    if attention(evidence.cell) == FUSED:
        described = f"attention by SDPA {sdpa_calls} times"
        if softmax_calls:
            faults.append(f"attention is computed by a softmax {softmax_calls} times, not by SDPA")
    elif sdpa_calls:
        faults.append(f"attention is computed by SDPA {sdpa_calls} times, not by a softmax")
    if not keeps_digits(evidence.device):
        faults.append("products of fp32 matrices lose digits: TF32 or bf16 is on")
    last = watched[-1]
    passes = f"passes of {', '.join(map(str, last['rows']))} rows in {trainer.log.precision}"
    recomputed = f"{len(last['recomputed'])} layers computed again"
    return expect_none(faults, f"{passes}, {recomputed}, {described}", "differ")


def update_faults(evidence: Evidence, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields a phrase for each way in which an update did not run as recorded or planned.

    All ranks must call this.
    """
    trainer = evidence.trainer
    rows = trainer.ranks.gather(facts["rows"])
    plans = planned_passes(trainer, facts["update"], facts["micro_batch"])
    if rows not in plans:
        yield f"passes of {rows} rows, by rank, not {plans[0]}"
    expected_layers = facts["layers"] if evidence.cell.recipe.gradient_checkpointing else []
    if facts["recomputed"] != expected_layers:
        counts = f"{len(facts['recomputed'])} layers computed again in the backward pass"
        yield f"{counts}, not {len(expected_layers)}"
    for kind, number in facts["types"].items():
        if kind != PRECISION_TYPES[trainer.log.precision]:
            yield f"{number} products in {kind}, not {trainer.log.precision}"
    for kind in facts["devices"]:
        if kind != evidence.device.type:
            yield f"products on {kind}, not {evidence.device.type}"


def planned_passes(trainer: Trainer, update: int, micro_batch: int) -> list[list[list[int]]]:
    """The possible plans of an update: the number of rows in each forward pass, by rank.

    There are several plans if one of the epoch's batches is smaller, since it may come at any time.
    """
    recipe, ranks, count = trainer.cell.recipe, trainer.ranks, len(trainer.features)
    size, steps = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    earlier_batches = steps * (update % recipe.updates_per_epoch(count))
    batches = min(steps, math.ceil(count / size) - earlier_batches)
    plans = []
    sizes = [[size] * batches]
    if count % size:
        for i in range(batches):
            sizes.append([size] * batches)
            sizes[-1][i] = count % size
    for rows in sizes:
        if ranks.count > 1:
            total = sum(rows)
            plans.append(
                [rank_passes(total, rank, ranks, micro_batch) for rank in range(ranks.count)]
            )
            continue
        passes: list[int] = []
        for batch in rows:
            passes += [len(piece) for piece in chunks(range(batch), micro_batch)]
        plans.append([passes])
    return plans


def rank_passes(rows: int, rank: int, ranks: Ranks, micro_batch: int) -> list[int]:
    """The number of rows in each of a rank's passes.

    Rows are dealt to the ranks in turn. A rank with too few passes adds passes over a single row of
    weight 0.
    """
    passes = [len(piece) for piece in chunks(range(rank, rows, ranks.count), micro_batch)]
    least = math.ceil(rows / (ranks.count * micro_batch)) if ranks.holds_parts else 1
    return passes + [1] * (least - len(passes))


class FunctionCalls(TorchFunctionMode):
    """Counts calls of torch's SDPA and of softmax over 4-D scores (B, heads, L, L)."""

    def __init__(self) -> None:
        """Starts with all counts at zero."""
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Makes the call, and counts it if it computes attention."""
        name = getattr(func, "__name__", "")
        if name == ATTENTION_CALL or (name == "softmax" and args[0].ndim == 4):
            self.counts[name] += 1
        return func(*args, **kwargs or {})


def attention_calls(evidence: Evidence) -> Counter[str]:
    """Counts the calls of SDPA and softmax in a training-mode forward pass over one row."""
    trainer = evidence.trainer
    calls = FunctionCalls()
    rows = evidence.probe.rows[:1]
    with torch.no_grad(), keep_state(trainer, training=True), trainer.accelerator.autocast(), calls:
        get_logits(trainer, rows)
    return calls.counts
