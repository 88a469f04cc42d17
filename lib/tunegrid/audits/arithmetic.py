"""Audits of what the trained model computes: forward and backward, alone and in a batch, with an adapter and without."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tunegrid.audits.built import is_adapted
from tunegrid.audits.evidence import Evidence
from tunegrid.codecs.base import IGNORED, Batch, on
from tunegrid.grid.backbones import within
from tunegrid.grid.methods import Answer
from tunegrid.run.device import resolve_quantization
from tunegrid.run.probe import (
    FINE,
    allowance,
    cut,
    distance,
    hooked,
    last_targets,
    logits_of,
    of_targets,
    target_logits,
    undisturbed,
)
from tunegrid.run.ranks import local_shard

ADDED = 1e-3  # of what an adapter adds; on the quick cells it is right to 1e-6, over NF4 too


def predicting_twice_is_the_same(evidence: Evidence) -> Answer:
    """In evaluation mode nothing is random: another pass over the same batch gives the same bits."""
    probe = evidence.probe
    if not probe.together:
        return None
    return not probe.repeated, f"logits differ by {probe.repeated:.1e} of the largest" if probe.repeated else "bit for bit"


def rows_alone_as_in_batch(evidence: Evidence) -> Answer:
    """Padding and neighbours do not matter: a row alone has the logits that it has in a batch, and gradients add up."""
    probe = evidence.probe
    if not probe.together:
        return None
    apart = max(
        distance(cut(batch[i], one[0].shape), one[0])
        for i, row in enumerate(probe.alone)
        for batch, one in zip(probe.together, row, strict=True)
    )
    right = max(apart, probe.gap or 0.0) <= allowance(evidence.trainer)
    return right, f"logits differ by {apart:.1e} of the largest, gradients by {probe.gap or 0:.1e} of their norm"


def gradients_reach(evidence: Evidence) -> Answer:
    """Every parameter that trains gets a gradient that is not zero, now or in training; those of unused modules aside."""
    if not evidence.probe.together:
        return None
    head = evidence.cell.head
    trained = {name: p for name, p in evidence.trainer.parameters.items() if p.requires_grad}
    dead = [name for name, p in trained.items() if name not in evidence.probe.reached and not _remembered(evidence, name)]
    used = {name for name, module in evidence.model.named_modules() if module in evidence.probe.called}
    missing = [
        name for name in dead if name.rpartition(".")[0] in used or name in evidence.own or within(name, head.new_modules)
    ]
    missing = [name for name in missing if not within(name, head.optional_modules)]  # BERT2BERT's loss does not use its pooler
    got = f"{len(trained) - len(dead)} of {len(trained)} tensors"
    return not missing, f"{got}; none for {', '.join(missing[:3])}" if missing else got


def gradients_survive_evaluation(evidence: Evidence) -> Answer:
    """A row's gradients are the same right after an evaluation, in one region of autocast: no cast of a weight outlives it."""
    gap = evidence.probe.after_evaluation
    return None if gap is None else (gap <= allowance(evidence.trainer), f"gradients differ by {gap:.1e} of their norm")


def _remembered(evidence: Evidence, name: str) -> bool:
    """Whether the optimizer's state shows a gradient of this parameter; the maps of packed moments show none."""
    state: dict[str, Any] = evidence.trainer.optimizer.state.get(evidence.trainer.stepped.get(name), {})
    kept = [value for name, value in state.items() if isinstance(value, Tensor) and value.ndim and "qmap" not in name]
    return any(bool(local_shard(value).any()) for value in kept if value.is_floating_point())


def loss_is_the_tasks(evidence: Evidence) -> Answer:
    """What trains is the cross-entropy of the targets, computed here from the model's logits; no penalty is part of it."""
    trainer, probe = evidence.trainer, evidence.probe
    if not probe.together:
        return None
    expected = float(_cross_entropy(probe.together, on(trainer.meter.device, trainer.codec.collate(probe.rows))))
    near = abs(probe.loss - expected) <= allowance(trainer) * max(abs(expected), 1.0)
    return near, f"{probe.loss:.6f} for {len(probe.rows)} rows" + ("" if near else f", where their targets have {expected:.6f}")


def _cross_entropy(logits: list[Tensor], batch: Batch) -> Tensor:
    """In nats, summed: of a label, of target tokens, or the mean of a span's start and end."""
    labels = batch["labels"]
    if len(logits) == 2:  # padding can be neither start nor end
        spans = [one.float().masked_fill(batch["attention_mask"] == 0, -torch.inf) for one in logits]
        return torch.stack([cross_entropy(one, labels[:, i], reduction="sum") for i, one in enumerate(spans)]).mean()
    if labels.ndim == 1:
        return cross_entropy(logits[0].float(), labels, reduction="sum")
    targets = [row[row != IGNORED] for row in (labels if "decoder_input_ids" in batch else labels[:, 1:])]
    return cross_entropy(torch.cat(of_targets(logits[0], batch)), torch.cat(targets), reduction="sum")


def packed_layers_compute_as_declared(evidence: Evidence) -> Answer:
    """Each layer packed to 4 bits computes in the declared type, outside autocast; its output's digits show it."""
    wanted, _ = resolve_quantization(evidence.cell, evidence.trainer.meter.device)
    computed = evidence.probe.computed
    if wanted is None or not computed:
        return None
    odd = [name for name, kind in computed.items() if kind != wanted.bnb_4bit_compute_dtype]
    detail = f"{len(computed)} layers, declared {wanted.bnb_4bit_compute_dtype}"
    return not odd, detail + (f"; {len(odd)} do not, {odd[0]} computes in {computed[odd[0]]}" if odd else "")


def output_follows_trained_tokens(evidence: Evidence) -> Answer:
    """The output layer's row of a token that an adapter trains is the embedding's, where both are one pretrained tensor."""
    layer = _token_rows(evidence.model)
    output = evidence.model.get_output_embeddings() if layer else None  # type: ignore[operator]
    if layer is None or output is None:
        return None
    device = evidence.trainer.meter.device
    tokens = torch.tensor(sorted(set(chain.from_iterable(layer.token_indices.values()))), device=device)
    with torch.no_grad(), undisturbed(evidence.trainer):
        rows = layer(tokens).float()  # (tokens, H)
        shown = output(torch.eye(rows.shape[1], device=device))[:, tokens].T.float()
    apart = distance(rows, shown)
    return apart <= FINE, f"{len(tokens)} rows of the output layer differ by {apart:.1e} of their largest value"


def _token_rows(model: nn.Module) -> Any:
    """The embedding of which an adapter trains some rows, where the output layer is tied to it; None where there is none."""
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    return next((m for m in model.modules() if tied and isinstance(m, TrainableTokensLayer) and not m.tied_adapter), None)


def adapters_add_as_declared(evidence: Evidence) -> Answer:
    """An adapted layer adds to its base's output what the method declares, as LoRA scale x B A x."""
    trainer, rows = evidence.trainer, evidence.probe.rows[:1]
    names = {module: name for name, module in evidence.model.named_modules() if is_adapted(module)}
    gaps: dict[str, float] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        gap = _gap(evidence, module, inputs[0], output)
        gaps.update({names[module]: gap} if gap is not None else {})

    with torch.no_grad(), undisturbed(trainer), hooked(names, look):
        logits_of(trainer, rows)
    if not gaps:
        return None
    wrong = [name for name, gap in gaps.items() if gap > 1]
    return not wrong, f"{len(gaps)} layers" + (f"; {len(wrong)} add something else, {wrong[0]} among them" if wrong else "")


def _gap(evidence: Evidence, layer: Any, inputs: Tensor, output: Tensor) -> float | None:
    """How far a layer's output is from its base's and what it should add, in units of what rounding allows."""
    expected = evidence.cell.method.contribution(layer, evidence.cell, inputs)
    if expected is None:
        return None
    base = layer.get_base_layer()(inputs)
    allowed = ADDED * expected.norm() + 4 * torch.finfo(output.dtype).eps * output.float().norm()
    return float((output.float() - base.float() - expected).norm() / allowed)


def decoder_sees_no_future(evidence: Evidence) -> Answer:
    """Another token in the middle of a target leaves that token's own logits and all earlier ones as they were."""
    rows = evidence.probe.rows if evidence.codec.generates else []
    if not rows or min(len(row.target) for row in rows) < 2:
        return None
    middles = [len(row.target) // 2 for row in rows]
    others = [replace(row, target=_with_other(row.target, i)) for row, i in zip(rows, middles, strict=True)]
    before = last_targets(evidence.probe.together[0], evidence.codec.collate(rows), rows)
    with torch.no_grad(), undisturbed(evidence.trainer), evidence.trainer.accelerator.autocast():
        after = target_logits(evidence.trainer, others)
    apart = max(distance(a[: i + 1], b[: i + 1]) for a, b, i in zip(before, after, middles, strict=True))
    return apart <= allowance(evidence.trainer), f"earlier logits differ by {apart:.1e} of the largest"


def _with_other(target: Sequence[int], index: int) -> list[int]:
    """The target with another token at an index: the first one that differs from it."""
    other = next((token for token in target if token != target[index]), 0)
    return [*target[:index], other, *target[index + 1 :]]
