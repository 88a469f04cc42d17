"""Audits of the model's logits, losses and gradients, with and without its adapter."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor

from tunegrid.audits.before import adapted_layers
from tunegrid.audits.evidence import Evidence, expect_none, worst_gap
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

# Allowed error as a share of an adapter's contribution. Quick cells are off by 1e-6, even over NF4.
ADDED = 1e-3
# How far logits with and without gradients may differ over a 4-bit or 16-bit base, as a share of
# the largest logit. They are equal on the quick cells, but a device may have other kernels.
SAME_ROW = 1e-2
# Allowed gap as a share of the largest output, since DoRA divides two equal norms that are computed
# in different orders.
NORM_ROUNDING = 1e-5
TWICE = 2.0  # an arbitrary factor by which an adapter is scaled and scaled back


def predicting_twice_is_the_same(evidence: Evidence) -> Answer:
    """Nothing is random in evaluation mode.

    A second pass gives bit-identical logits; a pass without gradients gives the same logits up to
    rounding.
    """
    probe = evidence.full_probe
    if probe.repeated:
        return False, f"logits differ by {probe.repeated:.1e} of the largest"
    gap = probe.without_gradients
    limit = FINE if has_fp32_base(evidence.trainer) else SAME_ROW
    if not gap:
        return Measured(0.0, limit), "bit for bit"
    return Measured(
        gap, limit
    ), f"bit for bit; without gradients, logits differ by {gap:.1e} of the largest"


def rows_alone_as_in_batch(evidence: Evidence) -> Answer:
    """Rows have the same logits alone as in a padded batch; their gradients sum to the batch's."""
    probe = evidence.full_probe
    gaps = []
    for i, row in enumerate(probe.alone):
        for batch, logits in zip(probe.together, row, strict=True):
            window = tuple(map(slice, logits[0].shape))
            gaps.append(distance(batch[i][window], logits[0]))
    logit_gap = worst_gap(gaps)
    gradient_gap = probe.gap or 0.0
    gap = Measured(worst_gap([logit_gap, gradient_gap]), allowance(evidence.trainer))
    logits_differ = f"logits differ by {logit_gap:.1e} of the largest"
    return gap, f"{logits_differ}, gradients by {gradient_gap:.1e} of their norm"


def loss_is_the_tasks(evidence: Evidence) -> Answer:
    """Apart from a method's penalty, the loss equals the targets' cross-entropy.

    The cross-entropy is computed here from the logits, in nats. For classification, the losses of
    scored rows are checked, too.
    """
    trainer, probe = evidence.trainer, evidence.full_probe
    batch = trainer.codec.collate(probe.rows)
    logits = [scores.detach().cpu() for scores in probe.together]
    labels = batch["labels"]
    target_count = len(labels)
    if len(logits) == 2:  # padding can be neither a start nor an end
        is_padding = batch["attention_mask"] == 0
        loss = 0.0
        for scores, positions in zip(logits, labels.T, strict=True):
            scores = scores.masked_fill(is_padding, -torch.inf)
            loss += float(cross_entropies(scores, positions).sum()) / 2
    elif labels.ndim == 1:
        loss = float(cross_entropies(logits[0], labels).sum())
    else:
        shifted_labels = labels if "decoder_input_ids" in batch else labels[:, 1:]
        targets = shifted_labels[shifted_labels != IGNORED]
        target_count = len(targets)
        scores = torch.cat(target_rows(logits[0], batch))
        loss = float(cross_entropies(scores, targets).sum())
    detail = (
        f"loss {probe.loss:.6f} for {len(probe.rows)} rows, "
        f"cross-entropy of their targets {loss:.6f}"
    )
    counted = trainer.codec.targets(batch)
    if counted != target_count:
        return False, f"{detail}; {target_count} targets count as {counted}"
    loss_gap = Measured(abs(probe.loss - loss) / max(abs(loss), 1.0), allowance(trainer))
    scored_gap = Measured(scored_loss_gap(evidence), FINE)
    if scored_gap.value:
        detail += f"; losses of scored rows differ by {scored_gap.value:.1e} nats"
    return closest_to_limit([loss_gap, scored_gap]), detail


def cross_entropies(scores: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each row of scores (N, options), in nats, computed in fp64.

    It is the log-sum-exp of the row's scores minus the score of the row's label.
    """
    scores = scores.double()
    largest = scores.max(1).values
    exponentials = (scores - largest.unsqueeze(1)).exp()
    return exponentials.sum(1).log() + largest - scores[range(len(labels)), labels]


def scored_loss_gap(evidence: Evidence) -> float:
    """The largest error in the loss of a scored row, in nats; 0 unless rows were classified."""
    evaluation, task = evidence.evaluation, evidence.cell.task
    if evaluation is None or task.problem is not Problem.CLASSIFY:
        return 0.0
    labels = torch.tensor([row[task.target] for row in evaluation.rows])
    scores = torch.tensor([output[2] for output in evaluation.outputs])
    losses = torch.tensor([output[1] for output in evaluation.outputs], dtype=torch.float64)
    return float((losses - cross_entropies(scores, labels)).abs().max())


def decoder_sees_no_future(evidence: Evidence) -> Answer:
    """Changing a target's middle token changes no logits that predict it or earlier tokens.

    Rows are compared in one batch. The longest row is also compared on its own, since without
    padding the model may use a different mask.
    """
    trainer = evidence.trainer
    rows = evidence.probe.rows if evidence.codec.generates else []
    if not rows or min(len(row.target) for row in rows) < 2:
        return None
    gaps = []
    with torch.no_grad(), keep_state(trainer), trainer.accelerator.autocast():
        for batch in (rows, rows[-1:]):
            changed_batch = [changed_in_the_middle(row) for row in batch]
            changed_logits = target_logits(trainer, changed_batch)
            for row, logits, changed in zip(
                batch, target_logits(trainer, batch), changed_logits, strict=True
            ):
                end = len(row.target) // 2 + 1
                gaps.append(distance(logits[:end], changed[:end]))
    gap = worst_gap(gaps)
    return Measured(gap, allowance(trainer)), f"earlier logits differ by {gap:.1e} of the largest"


def changed_in_the_middle(row: Feature) -> Feature:
    """The row with its target's middle token replaced by another token of the target, or by 0."""
    target = list(row.target)
    middle = len(target) // 2
    target[middle] = next((token for token in target[:-1] if token != target[middle]), 0)
    return replace(row, target=target)


def gradients_survive_evaluation(evidence: Evidence) -> Answer:
    """A row's gradients right after an evaluation match those computed without one.

    The evaluation runs in the same autocast context. Autocast caches the weights it casts, and
    weights cached under no_grad may pass no gradients.
    """
    gap = evidence.probe.after_evaluation
    if gap is None:
        return None
    return Measured(
        gap, allowance(evidence.trainer)
    ), f"gradients differ by {gap:.1e} of their norm"


def packed_layers_compute_as_declared(evidence: Evidence) -> Answer:
    """Layers packed to 4 bits compute in the declared type outside autocast.

    The digits of a layer's output reveal the type it was computed in.
    """
    config, _ = resolve_quantization(evidence.cell, evidence.device)
    types = evidence.probe.computed
    if config is None or not types:
        return None
    declared = config.bnb_4bit_compute_dtype
    faults = [f"{name} in {kind}" for name, kind in types.items() if kind != declared]
    return expect_none(
        faults, f"{len(types)} layers, declared {declared}", "compute in another type"
    )


def output_follows_trained_tokens(evidence: Evidence) -> Answer:
    """For trained tokens, a tied output layer has the same weight rows as the embedding."""
    model: Any = evidence.model
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return None
    layers = [
        m for m in model.modules() if isinstance(m, TrainableTokensLayer) and not m.tied_adapter
    ]
    output = model.get_output_embeddings() if layers else None
    if output is None:
        return None
    indices: Any = layers[0].token_indices
    tokens = torch.tensor(
        sorted(set(chain.from_iterable(indices.values()))), device=evidence.device
    )
    with torch.no_grad(), keep_state(evidence.trainer):
        rows = layers[0](tokens).float()  # (tokens, H)
        units = torch.eye(rows.shape[1], device=evidence.device)
        output_rows = output(units)[:, tokens].T.float()
    gap = distance(rows, output_rows)
    rows_differ = f"{len(tokens)} rows of the output layer differ"
    return Measured(gap, FINE), f"{rows_differ} by {gap:.1e} of their largest value"


def adapters_add_as_declared(evidence: Evidence) -> Answer:
    """Adapted layers add the declared term to their base's output: for LoRA, scale * B A x."""
    method = evidence.cell.method
    names = adapted_layers(evidence.model)
    gaps: dict[str, float] = {}  # by layer, in units of the tolerance

    def look(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        expected = method.contribution(layer, evidence.cell, inputs[0])
        if expected is None:
            return
        base_layer = layer.get_base_layer()
        base = base_layer(inputs[0])
        rounding = 4 * torch.finfo(output.dtype).eps
        if method.changes_inputs:  # 16-bit rounding may flip the last digit
            rounding += torch.finfo(getattr(base_layer, "compute_dtype", None) or output.dtype).eps
        tolerance = ADDED * norm([expected]) + rounding * norm([output])
        gaps[names[layer]] = norm([output.float() - base.float() - expected]) / tolerance

    with torch.no_grad(), keep_state(evidence.trainer), attach(names, look):
        get_logits(evidence.trainer, evidence.probe.rows[:1])
    if not gaps:
        return None
    gap = Measured(worst_gap(gaps.values()), 1.0)
    if gap:
        return gap, f"{len(gaps)} layers, the error at most {gap.value:.1e} of what is allowed"
    faults = [name for name, gap in gaps.items() if not gap <= 1]
    return expect_none(faults, f"{len(gaps)} layers", "add other values than declared")


def new_adapters_add_nothing(evidence: Evidence) -> Answer:
    """Before the first update, adapters that start at zero do not change their layers' output."""
    trainer, cell = evidence.trainer, evidence.cell
    if not isinstance(evidence.model, PeftModel) or not cell.method.starts_at_zero(cell):
        return None
    if trainer.log.updates or cell.profile.perturbation is not None:
        return None
    rows = spread_features(trainer.features[:FIRST_ROWS], 2)[:1]
    with torch.no_grad(), keep_state(trainer):
        busy_layers = layers_that_add(evidence, rows, NORM_ROUNDING)
    return expect_none(
        busy_layers, "the untrained adapter", "layers do not give what their base gives"
    )


def adapter_survives_its_switches(evidence: Evidence) -> Answer:
    """A disabled adapter adds nothing, and enabling it again restores the logits bit for bit.

    LoRA adapters are also scaled and scaled back. PEFT may change scales and which parameters
    train; the audit restores both.
    """
    model, rows = evidence.model, evidence.probe.rows[:1]
    if not isinstance(model, PeftModel) or not evidence.probe.alone:
        return None
    lora_layers = []
    if isinstance(evidence.cell.method, Lora):
        lora_layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    scales = [dict(layer.scaling) for layer in lora_layers]
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
        counts = f"{len(busy_layers)} layers do not give what their base gives"
        return False, f"with the adapter off, {counts}: {busy_layers[0]}"
    detail = "adapter off and on"
    if lora_layers:
        detail += f", {len(lora_layers)} layers scaled and scaled back"
    gap = worst_gap(map(distance, logits, later_logits))
    if gap:
        return False, f"{detail}: logits differ by {gap:.1e} of the largest"
    return True, f"{detail}: bit for bit"


def layers_that_add(evidence: Evidence, rows: Sequence[Feature], allowed: float = 0.0) -> list[str]:
    """Names of adapted layers whose output differs from their base layer's output.

    Differences of up to `allowed` times the largest value are ignored.
    """
    names = adapted_layers(evidence.model)
    busy: dict[str, None] = {}

    def look(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if not distance(output, layer.get_base_layer()(*inputs)) <= allowed:
            busy[names[layer]] = None

    with attach(names, look):
        get_logits(evidence.trainer, rows)
    return list(busy)
