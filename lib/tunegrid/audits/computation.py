"""Audits of the trained model: what it computes, alone and in a batch, with its adapter and without."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D
from transformers.utils import CONFIG_NAME

from tunegrid.audits.before import is_adapted
from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.codecs.base import IGNORED, Feature, move_batch
from tunegrid.grid.backbones import is_part
from tunegrid.grid.methods import Answer, Lora
from tunegrid.run.build import weight_files
from tunegrid.run.device import resolve_quantization
from tunegrid.run.probe import (
    FINE,
    FIRST_ROWS,
    allowance,
    attach,
    distance,
    get_logits,
    keep_state,
    spread_features,
    target_logits,
    target_rows,
)
from tunegrid.run.ranks import local_shard

ADDED = 1e-3  # of what an adapter adds; on the quick cells it is right to 1e-6, over NF4 too
NORM_ROUNDING = 1e-5  # of the largest output: DoRA divides a norm by itself, computed in another order
TWICE = 2.0  # any factor would do to scale an adapter and scale it back
MORE_THAN_LUCK = 6.0  # standard errors of a share of dropped values
HOLDERS = (nn.ModuleDict, nn.ModuleList)  # they are never called themselves


def predicting_twice_is_the_same(evidence: Evidence) -> Answer:
    """In evaluation mode nothing is random: another pass over the same batch gives the same bits."""
    repeated = evidence.full_probe.repeated
    return not repeated, f"logits differ by {repeated:.1e} of the largest" if repeated else "bit for bit"


def rows_alone_as_in_batch(evidence: Evidence) -> Answer:
    """Padding and neighbours do not matter: a row alone has the logits that it has in a batch, and gradients add up."""
    probe = evidence.full_probe
    logit_gap = max(
        distance(batch[i][tuple(map(slice, logits[0].shape))], logits[0])
        for i, row in enumerate(probe.alone)
        for batch, logits in zip(probe.together, row, strict=True)
    )
    passed = max(logit_gap, probe.gap or 0.0) <= allowance(evidence.trainer)
    return passed, f"logits differ by {logit_gap:.1e} of the largest, gradients by {probe.gap or 0:.1e} of their norm"


def loss_is_the_tasks(evidence: Evidence) -> Answer:
    """What trains is the cross-entropy of the targets in nats, computed here from logits; no penalty is part of it."""
    trainer, probe = evidence.trainer, evidence.full_probe
    batch = move_batch(evidence.device, trainer.codec.collate(probe.rows))
    logits, labels = probe.together, batch["labels"]
    if len(logits) == 2:  # padding can be neither start nor end
        spans = [scores.float().masked_fill(batch["attention_mask"] == 0, -torch.inf) for scores in logits]
        loss = sum(cross_entropy(scores, labels[:, i], reduction="sum") for i, scores in enumerate(spans)) / 2
    elif labels.ndim == 1:
        loss = cross_entropy(logits[0].float(), labels, reduction="sum")
    else:
        targets = [row[row != IGNORED] for row in (labels if "decoder_input_ids" in batch else labels[:, 1:])]
        loss = cross_entropy(torch.cat(target_rows(logits[0], batch)), torch.cat(targets), reduction="sum")
    passed = abs(probe.loss - float(loss)) <= allowance(trainer) * max(abs(float(loss)), 1.0)
    return passed, f"loss {probe.loss:.6f} for {len(probe.rows)} rows, cross-entropy of their targets {float(loss):.6f}"


def decoder_sees_no_future(evidence: Evidence) -> Answer:
    """Another token in the middle of a target leaves that token's own logits and all earlier ones as they were."""
    rows = evidence.probe.rows if evidence.codec.generates else []
    if not rows or min(len(row.target) for row in rows) < 2:
        return None
    middles = [len(row.target) // 2 for row in rows]
    changed_rows = []
    for row, i in zip(rows, middles, strict=True):
        replacement = next((token for token in row.target if token != row.target[i]), 0)
        changed_rows.append(replace(row, target=[*row.target[:i], replacement, *row.target[i + 1 :]]))
    logits = target_rows(evidence.probe.together[0], evidence.codec.collate(rows), rows)
    with torch.no_grad(), keep_state(evidence.trainer), evidence.trainer.accelerator.autocast():
        changed_logits = target_logits(evidence.trainer, changed_rows)
    gap = max(distance(a[: i + 1], b[: i + 1]) for a, b, i in zip(logits, changed_logits, middles, strict=True))
    return gap <= allowance(evidence.trainer), f"earlier logits differ by {gap:.1e} of the largest"


def gradients_reach(evidence: Evidence) -> Answer:
    """Every parameter that trains gets a gradient that is not zero, now or in training; those of unused modules aside."""
    probe, head, trained, trainer = evidence.full_probe, evidence.cell.head, evidence.trained, evidence.trainer

    def remembered(name: str) -> bool:
        """Whether the optimizer's state shows a gradient; the maps of packed moments show none."""
        state: dict[str, Any] = trainer.optimizer.state.get(trainer.stepped.get(name), {})
        moments = [value for key, value in state.items() if isinstance(value, Tensor) and value.ndim and "qmap" not in key]
        return any(bool(local_shard(moment).any()) for moment in moments if moment.is_floating_point())

    dead_tensors = [name for name in trained if name not in probe.reached and not remembered(name)]
    used_modules = {name for name, module in evidence.model.named_modules() if module in probe.called}
    faults = [
        name
        for name in dead_tensors
        if (name.rpartition(".")[0] in used_modules or name in evidence.own or is_part(name, head.new_modules))
        and not is_part(name, head.optional_modules)  # BERT2BERT's loss does not use its pooler
    ]
    return expect_none(faults, f"{len(trained) - len(dead_tensors)} of {len(trained)} tensors get a gradient", "get none")


def gradients_survive_evaluation(evidence: Evidence) -> Answer:
    """A row's gradients are the same right after an evaluation, in one region of autocast: no cast of a weight outlives it."""
    gap = evidence.probe.after_evaluation
    return None if gap is None else (gap <= allowance(evidence.trainer), f"gradients differ by {gap:.1e} of their norm")


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
    return gap <= FINE, f"{len(tokens)} rows of the output layer differ by {gap:.1e} of their largest value"


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
        tolerance = ADDED * expected.norm() + rounding * output.float().norm()
        gaps[names[layer]] = float((output.float() - base.float() - expected).norm() / tolerance)

    rows = evidence.probe.rows[:1]
    with torch.no_grad(), keep_state(evidence.trainer), attach(names, look):
        get_logits(evidence.trainer, rows)
    if not gaps:
        return None
    return expect_none([name for name, gap in gaps.items() if gap > 1], f"{len(gaps)} layers", "add other values than declared")


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


TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def computes_in_its_precision(evidence: Evidence) -> Answer:
    """Linear layers of fp32 weights give the type of the precision that trained, in the trainer's own context."""
    trainer = evidence.trainer
    declared = TYPES[trainer.log.precision]
    layers = []
    for module in evidence.model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module.weight.dtype is torch.float32:
            layers.append(module)
    types: Counter[torch.dtype] = Counter()

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        types[output.dtype] += 1

    with torch.no_grad(), keep_state(trainer), trainer.accelerator.autocast(), attach(layers, look):
        get_logits(trainer, evidence.probe.rows[:1])
    if not types:
        return None
    odd = [f"{number} in {kind}" for kind, number in types.items() if kind is not declared]
    return expect_none(odd, f"{types[declared]} products in {declared}", "other types")


class Dropout(NamedTuple):
    """A rate of dropout that a layer declares: `attribute` of `holder`; `user` is the module that should apply it."""

    name: str
    holder: nn.Module
    attribute: str
    user: nn.Module
    rate: float


def dropout_drops(evidence: Evidence) -> Answer:
    """Every dropout that the layers declare is at work in training mode, at its own rate.

    One that is a module must be called, and drop. One that is only a number, such as attention's under SDPA, must change the
    logits when it is the only one that is on. That none is at work in evaluation is `predicting_twice_is_the_same`'s matter.
    """
    faults = undeclared_rates(evidence)
    if faults:
        return False, f"{len(faults)} have another rate than the checkpoint's config: {', '.join(faults[:3])}"
    dropouts = declared_dropouts(evidence.model)
    if not dropouts:
        return None
    shares: dict[nn.Module, tuple[int, int]] = {}  # how many values were lost of how many
    called_modules: set[nn.Module] = set()

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        called_modules.add(module)
        if isinstance(module, nn.Dropout):
            values = inputs[0] != 0
            shares[module] = int(((output == 0) & values).sum()), int(values.sum())

    rows = evidence.probe.rows
    with torch.no_grad(), keep_state(evidence.trainer, training=True):
        with attach({module for dropout in dropouts for module in (dropout.holder, dropout.user)}, look):
            get_logits(evidence.trainer, rows)
        modules, odd = [dropout for dropout in dropouts if dropout.holder in shares], []
        for dropout in modules:
            zeros, values = shares[dropout.holder]
            if abs(zeros - dropout.rate * values) > MORE_THAN_LUCK * math.sqrt(dropout.rate * (1 - dropout.rate) * values):
                odd.append(dropout.name)
        numbers: dict[str, list[Dropout]] = {}  # by their places in every layer: names without the layer's number
        for dropout in dropouts:
            if dropout.holder not in shares and dropout.user in called_modules:
                numbers.setdefault(re.sub(r"\d+", "N", dropout.name), []).append(dropout)
        idle = []
        try:
            for place, members in numbers.items():
                for dropout in dropouts:
                    setattr(dropout.holder, dropout.attribute, dropout.rate if dropout in members else 0.0)
                first, second = (get_logits(evidence.trainer, rows[:1])[0] for _ in range(2))
                idle += [place] if all(map(torch.equal, first, second)) else []
        finally:
            for dropout in dropouts:
                setattr(dropout.holder, dropout.attribute, dropout.rate)
    if odd or idle:
        return False, f"{len(odd)} drop at another rate than declared {odd[:2]}, without effect: {', '.join(idle) or 'none'}"
    return True, f"{len(modules)} drop at their declared rate, {sum(map(len, numbers.values()))} have an effect"


def undeclared_rates(evidence: Evidence) -> list[str]:
    """The dropouts of the base whose rate is not that of the checkpoint's own config."""
    cell = evidence.cell
    files = weight_files(cell) if not cell.profile.random_weights else []
    if not files:
        return []
    config = json.loads((files[0].parent / CONFIG_NAME).read_text(encoding="utf-8"))
    faults = []
    for pattern, field in cell.backbone.dropouts.items():
        rate = config.get(field)
        modules = [(n, m) for n, m in evidence.model.named_modules() if re.search(rf"(^|\.){pattern}$", n)]
        if rate is None or not modules:
            continue
        for name, module in modules:
            own_rate = module.p if isinstance(module, nn.Dropout) else 0.0
            if own_rate != rate:
                faults.append(f"{name} {own_rate:g}, not {rate:g}")
    return faults


def declared_dropouts(model: nn.Module) -> list[Dropout]:
    """Every `nn.Dropout`, and every number between 0 and 1 whose name says dropout."""
    modules = dict(model.named_modules())
    dropouts = []
    for name, module in modules.items():
        if isinstance(module, nn.Dropout):
            user = name.rpartition(".")[0]
            while user and isinstance(modules[user], HOLDERS):
                user = user.rpartition(".")[0]
            dropouts.append(Dropout(name, module, "p", modules[user], module.p))
        rates = {key: value for key, value in vars(module).items() if "dropout" in key and isinstance(value, float)}
        dropouts += [Dropout(f"{name}.{key}", module, key, module, rate) for key, rate in rates.items()]
    return [one for one in dropouts if 0 < one.rate < 1]
