"""Audits of the trained model: what it computes, alone and in a batch, with its adapter and without."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn

from tunegrid.audits.before import is_adapted
from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.codecs.base import IGNORED, Feature
from tunegrid.grid.methods import Answer, Lora, Measured, closest_to_limit
from tunegrid.grid.tasks import Problem
from tunegrid.run.device import resolve_quantization
from tunegrid.run.probe import (
    FINE,
    FIRST_ROWS,
    allowance,
    attach,
    distance,
    get_logits,
    has_fp32_base,
    keep_state,
    norm,
    spread_features,
    target_logits,
    target_rows,
)

ADDED = 1e-3  # of what an adapter adds; on the quick cells it is right to 1e-6, over NF4 too
# Of the logits of a row with and without gradients, in 16 bits: 0 on the quick cells, but a device may have other kernels.
SAME_ROW = 1e-2
NORM_ROUNDING = 1e-5  # of the largest output: DoRA divides a norm by itself, computed in another order
TWICE = 2.0  # any factor would do to scale an adapter and scale it back


def predicting_twice_is_the_same(evidence: Evidence) -> Answer:
    """In evaluation mode nothing is random: another pass gives the same bits, one without gradients the same logits."""
    probe = evidence.full_probe
    if probe.repeated:
        return False, f"logits differ by {probe.repeated:.1e} of the largest"
    gap = probe.without_gradients
    limit = FINE if has_fp32_base(evidence.trainer) else SAME_ROW
    if not gap:
        return Measured(0.0, limit), "bit for bit"
    return Measured(gap, limit), f"bit for bit; without gradients, logits differ by {gap:.1e} of the largest"


def rows_alone_as_in_batch(evidence: Evidence) -> Answer:
    """Padding and neighbours do not matter: a row alone has the logits that it has in a batch, and gradients add up."""
    probe = evidence.full_probe
    logit_gap = max(
        distance(batch[i][tuple(map(slice, logits[0].shape))], logits[0])
        for i, row in enumerate(probe.alone)
        for batch, logits in zip(probe.together, row, strict=True)
    )
    gap = Measured(max(logit_gap, probe.gap or 0.0), allowance(evidence.trainer))
    return gap, f"logits differ by {logit_gap:.1e} of the largest, gradients by {probe.gap or 0:.1e} of their norm"


def loss_is_the_tasks(evidence: Evidence) -> Answer:
    """What trains is the cross-entropy of the targets in nats, computed here from logits; no penalty is part of it.

    So is the loss of each scored row, if the cell has labels.
    """
    trainer, probe = evidence.trainer, evidence.full_probe
    batch = trainer.codec.collate(probe.rows)
    logits = [scores.detach().cpu() for scores in probe.together]
    labels = batch["labels"]
    target_count = len(labels)
    if len(logits) == 2:  # padding can be neither start nor end
        is_padding = batch["attention_mask"] == 0
        sums = [cross_entropies(logits[i].masked_fill(is_padding, -torch.inf), labels[:, i]).sum() for i in range(2)]
        loss = float(sums[0] + sums[1]) / 2
    elif labels.ndim == 1:
        loss = float(cross_entropies(logits[0], labels).sum())
    else:
        targets = [row[row != IGNORED] for row in (labels if "decoder_input_ids" in batch else labels[:, 1:])]
        target_count = sum(map(len, targets))
        loss = float(cross_entropies(torch.cat(target_rows(logits[0], batch)), torch.cat(targets)).sum())
    detail = f"loss {probe.loss:.6f} for {len(probe.rows)} rows, cross-entropy of their targets {loss:.6f}"
    if trainer.codec.targets(batch) != target_count:
        return False, f"{detail}; {target_count} targets count as {trainer.codec.targets(batch)}"
    loss_gap = Measured(abs(probe.loss - loss) / max(abs(loss), 1.0), allowance(trainer))
    scored_gap = Measured(scored_loss_gap(evidence), FINE)
    if scored_gap.value:
        detail += f"; losses of scored rows differ by {scored_gap.value:.1e} nats"
    return closest_to_limit([loss_gap, scored_gap]), detail


def cross_entropies(scores: Tensor, labels: Tensor) -> Tensor:
    """In nats, by definition and in fp64: the log of the sum of exponentials of scores (N, options), less the label's score."""
    scores = scores.double()
    largest = scores.max(1).values
    exponentials = (scores - largest.unsqueeze(1)).exp()
    return exponentials.sum(1).log() + largest - scores[range(len(labels)), labels]


def scored_loss_gap(evidence: Evidence) -> float:
    """The largest error of a scored row's loss, in nats; 0 if the cell's outputs are no labels with losses."""
    evaluation = evidence.evaluation
    if evaluation is None or evidence.cell.task.problem is not Problem.CLASSIFY:
        return 0.0
    target = evidence.cell.task.target
    labels = torch.tensor([row[target] for row in evaluation.rows])
    losses = torch.tensor([output[1] for output in evaluation.outputs], dtype=torch.float64)
    expected = cross_entropies(torch.tensor([output[2] for output in evaluation.outputs]), labels)
    return float((losses - expected).abs().max())


def decoder_sees_no_future(evidence: Evidence) -> Answer:
    """Another token in the middle of a target leaves that token's own logits and all earlier ones as they were.

    The rows are asked in one batch and one of them alone, which may take another mask; each time twice in the same way.
    """
    trainer = evidence.trainer
    rows = evidence.probe.rows if evidence.codec.generates else []
    if not rows or min(len(row.target) for row in rows) < 2:
        return None
    gaps = []
    with torch.no_grad(), keep_state(trainer), trainer.accelerator.autocast():
        for batch in (rows, rows[-1:]):
            changed_logits = target_logits(trainer, [changed_in_the_middle(row) for row in batch])
            for row, logits, changed in zip(batch, target_logits(trainer, batch), changed_logits, strict=True):
                end = len(row.target) // 2 + 1
                gaps.append(distance(logits[:end], changed[:end]))
    return Measured(max(gaps), allowance(trainer)), f"earlier logits differ by {max(gaps):.1e} of the largest"


def changed_in_the_middle(row: Feature) -> Feature:
    """The row with another token of its own in the middle of its target."""
    middle = len(row.target) // 2
    replacement = next((token for token in row.target[:-1] if token != row.target[middle]), 0)
    return replace(row, target=[*row.target[:middle], replacement, *row.target[middle + 1 :]])


def gradients_survive_evaluation(evidence: Evidence) -> Answer:
    """A row's gradients are the same right after an evaluation, in one region of autocast: no cast of a weight outlives it."""
    gap = evidence.probe.after_evaluation
    if gap is None:
        return None
    return Measured(gap, allowance(evidence.trainer)), f"gradients differ by {gap:.1e} of their norm"


def packed_layers_compute_as_declared(evidence: Evidence) -> Answer:
    """Each layer packed to 4 bits computes in the declared type, outside autocast; its output's digits show it."""
    config, _ = resolve_quantization(evidence.cell, evidence.device)
    types = evidence.probe.computed
    if config is None or not types:
        return None
    faults = [f"{name} in {kind}" for name, kind in types.items() if kind != config.bnb_4bit_compute_dtype]
    return expect_none(faults, f"{len(types)} layers, declared {config.bnb_4bit_compute_dtype}", "compute in another type")


def output_follows_trained_tokens(evidence: Evidence) -> Answer:
    """The output layer's row of a token that an adapter trains is the embedding's, where both are one pretrained tensor."""
    is_tied = getattr(getattr(evidence.model, "config", None), "tie_word_embeddings", False)
    layers = [m for m in evidence.model.modules() if is_tied and isinstance(m, TrainableTokensLayer) and not m.tied_adapter]
    output = evidence.model.get_output_embeddings() if layers else None  # type: ignore[operator]
    if output is None:
        return None
    indices: Any = layers[0].token_indices
    tokens = torch.tensor(sorted(set(chain.from_iterable(indices.values()))), device=evidence.device)
    with torch.no_grad(), keep_state(evidence.trainer):
        rows = layers[0](tokens).float()  # (tokens, H)
        output_rows = output(torch.eye(rows.shape[1], device=evidence.device))[:, tokens].T.float()
    gap = distance(rows, output_rows)
    return Measured(gap, FINE), f"{len(tokens)} rows of the output layer differ by {gap:.1e} of their largest value"


def adapters_add_as_declared(evidence: Evidence) -> Answer:
    """An adapted layer adds to its base's output what the method declares, as LoRA scale x B A x."""
    method = evidence.cell.method
    names = {module: name for name, module in evidence.model.named_modules() if is_adapted(module)}
    gaps: dict[str, float] = {}  # in units of what rounding allows

    def look(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        expected = method.contribution(layer, evidence.cell, inputs[0])
        if expected is None:
            return
        base_layer = layer.get_base_layer()
        base = base_layer(inputs[0])
        rounding = 4 * torch.finfo(output.dtype).eps
        if method.changes_inputs:  # in 16 bits the last one may fall to the other side
            rounding += torch.finfo(getattr(base_layer, "compute_dtype", None) or output.dtype).eps
        tolerance = ADDED * norm([expected]) + rounding * norm([output])
        gaps[names[layer]] = norm([output.float() - base.float() - expected]) / tolerance

    rows = evidence.probe.rows[:1]
    with torch.no_grad(), keep_state(evidence.trainer), attach(names, look):
        get_logits(evidence.trainer, rows)
    if not gaps:
        return None
    largest_gap = Measured(max(gaps.values()), 1.0)
    if largest_gap:
        return largest_gap, f"{len(gaps)} layers, the error at most {largest_gap.value:.1e} of what is allowed"
    faults = [name for name, gap in gaps.items() if not gap <= 1]
    return expect_none(faults, f"{len(gaps)} layers", "add other values than declared")


def new_adapters_add_nothing(evidence: Evidence) -> Answer:
    """Before its first update an adapter gives what its base gives, if the method's definition says so."""
    trainer, cell = evidence.trainer, evidence.cell
    is_asked = isinstance(evidence.model, PeftModel) and cell.method.starts_at_zero(cell)
    if not is_asked or trainer.log.updates or cell.profile.perturbation is not None:
        return None
    with torch.no_grad(), keep_state(trainer):
        busy_layers = layers_that_add(evidence, spread_features(trainer.features[:FIRST_ROWS], 2)[:1], NORM_ROUNDING)
    return expect_none(busy_layers, "the untrained adapter", "layers do not give what their base gives")


def adapter_survives_its_switches(evidence: Evidence) -> Answer:
    """Turned off, it adds nothing: each layer gives what its base gives. On again, scaled and scaled back, all is as before.

    Logits are the same then, bit for bit; the same parameters train, and scales are what they were, whatever PEFT makes of
    them.
    """
    model, rows = evidence.model, evidence.probe.rows[:1]
    if not isinstance(model, PeftModel) or not evidence.probe.alone:
        return None
    lora_layers = [m for m in model.modules() if isinstance(m, LoraLayer)] if isinstance(evidence.cell.method, Lora) else []
    flags, scales = {p: p.requires_grad for p in model.parameters()}, [dict(layer.scaling) for layer in lora_layers]
    with torch.no_grad(), keep_state(evidence.trainer):
        logits = get_logits(evidence.trainer, rows)[0]
        try:
            with model.disable_adapter():
                busy_layers = layers_that_add(evidence, rows)
            for layer in lora_layers:
                layer.scale_layer(TWICE)
                layer.unscale_layer()
            later_logits = get_logits(evidence.trainer, rows)[0]
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
            for layer, scaling in zip(lora_layers, scales, strict=True):
                layer.scaling.update(scaling)
    if busy_layers:
        return False, f"with the adapter off, {len(busy_layers)} layers do not give what their base gives: {busy_layers[0]}"
    gap = max(distance(one, other) for one, other in zip(logits, later_logits, strict=True))
    detail = "adapter off and on" + (f", {len(lora_layers)} layers scaled and scaled back" if lora_layers else "")
    return not gap, f"{detail}: " + (f"logits differ by {gap:.1e} of the largest" if gap else "bit for bit")


def layers_that_add(evidence: Evidence, rows: Sequence[Feature], allowed: float = 0.0) -> list[str]:
    """Names of the adapted layers whose output is not that of the layer that they adapt, but for a share of its largest."""
    names = {module: name for name, module in evidence.model.named_modules() if is_adapted(module)}
    busy: dict[str, None] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        base: Any = module.get_base_layer()  # type: ignore[operator] # PEFT's
        if distance(output, base(*inputs)) > allowed:
            busy[names[module]] = None

    with attach(names, look):
        get_logits(evidence.trainer, rows)
    return list(busy)
