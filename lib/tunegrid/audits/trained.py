"""Audits of what training did: to which weights, at which rate, with which loss."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tunegrid.audits.evidence import Evidence
from tunegrid.codecs.base import Feature, on
from tunegrid.grid.backbones import within
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Answer
from tunegrid.run.first_updates import MOVED, PACKED_TOLERANCE, STEP_TOLERANCE
from tunegrid.run.probe import is_plain, relative_gap, smallest, undisturbed
from tunegrid.run.train import Trainer, make_schedule

# Between two ways to compute one gradient, in units of its norm; a fault loses or multiplies a micro-batch, half of the norm.
# bf16 logits are right to 4e-3, and so is the little that they leave of the gradient where a model is sure.
TOLERANCE, COARSE_TOLERANCE = 0.02, 0.2
LEAST = 1e-5  # nats; a model so sure leaves a gradient of which fp32 rounds off a percent
CLIPPED = 1e-3  # torch divides by the norm plus 1e-6; bf16 gradients are summed in their own type


def base_frozen(evidence: Evidence) -> Answer:
    """Frozen weights are bit-identical, and nothing but adapters and new parts trains."""
    if not evidence.cell.method.adapts:
        return None
    named, new = evidence.trainer.parameters, evidence.cell.head.new_modules
    strays = [name for name, p in named.items() if p.requires_grad and name not in evidence.own and not within(name, new)]
    frozen = [name for name, p in named.items() if not p.requires_grad]
    changed = [name for name in frozen if evidence.after[name] != evidence.trainer.before[name]]
    if strays or changed:
        return False, f"{len(strays)} base tensors train, {len(changed)} frozen ones changed: {(strays + changed)[0]}"
    return True, f"{len(frozen)} frozen tensors unchanged"


def weights_moved(evidence: Evidence) -> Answer:
    """Every group of weights that trains has changed: each of the method's own, each new part, each layer of a full model."""
    trainer, head = evidence.trainer, evidence.cell.head
    groups: dict[str, list[bool]] = {}
    for name in trainer.log.reached:
        groups.setdefault(_group(evidence, name), []).append(evidence.after[name] != trainer.before[name])
    unreached = [name for name, p in trainer.parameters.items() if p.requires_grad and name not in trainer.log.reached]
    own = [name for name in unreached if name in evidence.own or within(name, head.new_modules)]
    dead = [name for name in own if not within(name, head.optional_modules)]  # BERT2BERT's loss does not use its pooler
    still = sorted(group for group, moved in groups.items() if not any(moved))
    if still or dead or not groups:
        return False, f"unchanged: {', '.join(still) or 'none'}; no gradient: {', '.join(dead[:3]) or 'none'}"
    return True, f"{len(groups)} groups changed"


def _group(evidence: Evidence, name: str) -> str:
    if name in evidence.own:
        return evidence.cell.method.group_of(name)
    new = next((module for module in evidence.cell.head.new_modules if within(name, [module])), None)
    return new or re.match(r"[^\d]*\d*", name).group()  # type: ignore[union-attr]


def gradients_clipped(evidence: Evidence) -> Answer:
    """The first update's gradients have, after clipping, the smaller one of their own norm and the recipe's bound."""
    bound, log = evidence.cell.recipe.max_grad_norm, evidence.trainer.log
    if bound is None or not log.updates:
        return None
    before = log.gradient_norms[0] if log.gradient_norms else None
    if before is None or log.clipped_norm is None:
        return False, f"nothing was clipped, where the bound is {bound:g}"
    if not math.isfinite(before):  # fp16 lost the update to an overflow
        return None
    right = math.isclose(log.clipped_norm, min(before, bound), rel_tol=CLIPPED)
    return right, f"{before:.3g} before, {log.clipped_norm:.3g} after, bound {bound:g}"


def trains_in_fp32(evidence: Evidence) -> Answer:
    """Weights that train are fp32, and so are their moments, but for an optimizer that packs them by design.

    Bitsandbytes' leaves moments of small tensors in fp32: those of norms, biases and small adapters are few and matter most.
    Packed second moments are never negative: a map with negative levels leaves them half of its levels.
    """
    trained = {name: p for name, p in evidence.trainer.stepped.items() if p.requires_grad}
    low = [f"{name} is {_type(p)}" for name, p in trained.items() if p.dtype is not torch.float32]
    moments = {
        f"{key} of {name}": moment
        for name, p in trained.items()
        for key, moment in _moments(evidence.trainer.optimizer, p).items()
        if moment.dtype is not torch.float32
    }
    if moments and not {moment.dtype for moment in moments.values()} <= moment_types(evidence):
        low += [f"{name} is {_type(moment)}" for name, moment in moments.items()]
    if small := small_but_packed(evidence.trainer.optimizer, trained):
        return False, f"moments of {len(small)} tensors are packed, though the optimizer leaves small ones in fp32: {small[0]}"
    if signed := [name for name, p in trained.items() if _signed_second_moments(evidence.trainer.optimizer, p)]:
        return False, f"second moments of {len(signed)} tensors are packed with negative levels: {signed[0]}"
    return not low, f"{len(low)} tensors in other types: {low[0]}" if low else f"{len(trained)} tensors and their moments"


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _moments(optimizer: Any, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an optimizer keeps for each value of a parameter."""
    state = optimizer.state.get(parameter, {})
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor) and value.shape == parameter.shape}


def _signed_second_moments(optimizer: Any, parameter: torch.Tensor) -> bool:
    """Whether the levels that bitsandbytes packs second moments to, `qmap2`, are those for signed numbers."""
    levels = optimizer.state.get(parameter, {}).get("qmap2")
    return levels is not None and bool((levels < 0).any())


def small_but_packed(optimizer: Any, trained: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors whose moments are packed, though the optimizer says that it packs none so small."""
    least: int = getattr(getattr(getattr(optimizer, "optimizer", optimizer), "args", None), "min_8bit_size", 0)
    small = {name: p for name, p in trained.items() if p.numel() < least}
    return [name for name, p in small.items() if any(m.dtype is torch.uint8 for m in _moments(optimizer, p).values())]


def moment_types(evidence: Evidence) -> set[torch.dtype]:
    """The types of moments that the same optimizer keeps for a large fp32 weight alone; none where the method made its own."""
    weight = torch.zeros(64, 128, device=evidence.trainer.meter.device, requires_grad=True)  # large enough to be packed
    weight.grad = torch.ones_like(weight)
    lone = evidence.cell.optimizer([{"params": [weight]}], evidence.cell.recipe.learning_rate)
    if type(lone) is not type(evidence.trainer.optimizer.optimizer):
        return {m.dtype for p in evidence.trainer.trained for m in _moments(evidence.trainer.optimizer, p).values()}
    lone.step()
    return {torch.float32, *(moment.dtype for moment in _moments(lone, weight).values())}


def optimizer_steps_as_defined(evidence: Evidence) -> Answer:
    """The first steps of an AdamW moved the weights as its definition says, computed here from the same gradients and rates."""
    adamw = evidence.trainer.adamw
    if adamw.gap is None:
        return None
    allowed = PACKED_TOLERANCE if adamw.packed else STEP_TOLERANCE
    return adamw.gap <= allowed, f"{MOVED} updates differ from AdamW's definition by {adamw.gap:.1e} of the movement"


def variant_applied(evidence: Evidence) -> Answer:
    """What the method itself says of the trained model: that it trained it, and no other method."""
    return evidence.cell.method.holds_after(evidence)


def loss_is_mean_over_accumulation(evidence: Evidence) -> Answer:
    """Gradients accumulated over two micro-batches of an update are those of the mean loss of their rows in one batch."""
    trainer, group = evidence.trainer, evidence.trainer.last_group
    if len(group) < 2 and evidence.cell.recipe.gradient_accumulation_steps > 1:
        group = next(iter(trainer.updates(0)))  # an epoch may end with a part of an update
    if len(group) < 2:
        return None
    # Few rows show it, and fit where training fitted; of unequal number, so that a mean of means is another mean.
    few = [group[0][:3], group[1][:1]]
    names = smallest({name: p for name, p in trainer.parameters.items() if p.requires_grad})
    with torch.enable_grad(), undisturbed(trainer):
        _, apart = trainer.accumulated(few, names)
        loss, together = in_one_batch(trainer, [feature for features in few for feature in features], names)
    if loss < LEAST:
        return None
    gap = relative_gap(apart, together)
    same = gap <= (TOLERANCE if is_plain(trainer) else COARSE_TOLERANCE)
    return same, f"2 micro-batches: gradients differ by {gap:.1e} of those in one batch, where the loss is {loss:.6f}"


def in_one_batch(trainer: Trainer, features: Sequence[Feature], names: Sequence[str]) -> tuple[float, list[torch.Tensor]]:
    """The mean loss of some rows, and its gradients; in several batches only where training never held so many rows."""
    size, parameters = trainer.log.micro_batch, [trainer.parameters[name] for name in names]
    batches = [trainer.codec.collate(features[start : start + size]) for start in range(0, len(features), size)]
    count = sum(trainer.codec.targets(batch) for batch in batches)
    total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        with trainer.accelerator.autocast():
            loss = trainer.codec.loss(trainer.model, on(trainer.meter.device, batch)) / count
        gradients = _added(gradients, torch.autograd.grad(loss, parameters, allow_unused=True))
        total += float(loss.detach())
    penalty = trainer.cell.method.penalty(trainer.model)
    if penalty is not None:
        gradients = _added(gradients, torch.autograd.grad(penalty, parameters, allow_unused=True))
    return total, gradients


def _added(sums: Sequence[torch.Tensor], more: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    return [one if other is None else one + other for one, other in zip(sums, more, strict=True)]


def schedule_counts_updates(evidence: Evidence) -> Answer:
    """As many updates as the recipe plans, each with its schedule's rate for that update; all groups' rates in proportion.

    Of first updates, those that were made have the rates of the whole schedule.
    """
    log, total = evidence.trainer.log, planned_updates(evidence)
    due = min(log.updates, total) if evidence.trainer.paused else total
    if log.stopped:
        return None
    rates = log.learning_rates
    if not log.updates == len(rates) == due:
        return False, f"{log.updates} updates with {len(rates)} rates, where the recipe plans {due}"
    wanted = wanted_rates(evidence)
    odd = [i for i, (a, b) in enumerate(zip(rates, wanted, strict=True)) if not _same_rate(a, b)]
    if odd:
        return False, f"update {odd[0] + 1} of {total} had {rates[odd[0]]:.3g}, not {wanted[odd[0]]:.3g}"
    if strange := strange_head_rates(evidence):
        return False, f"the head trains at a peak rate of {strange[0]:.3g}, not {evidence.cell.recipe.head_learning_rate:.3g}"
    strays = stray_groups(evidence, rates)
    if strays:
        return False, f"parameter group {strays[0] + 1} does not follow the schedule"
    return True, f"{due} updates, the last at {rates[-1]:.3g}"


def planned_updates(evidence: Evidence) -> int:
    """The recipe's number of updates over the rows that train, whatever the trainer says."""
    return evidence.cell.recipe.planned_updates(len(evidence.trainer.features))


def wanted_rates(evidence: Evidence) -> list[float]:
    """The recipe's rate at each update that was made; one that fp16 lost does not count."""
    log, total = evidence.trainer.log, planned_updates(evidence)
    updates = [i - sum(skipped < i for skipped in log.skipped) for i in range(len(log.learning_rates))]
    if evidence.cell.recipe.lr_scheduler_type in DECAYS:
        return [learning_rate_at(evidence.cell, update, total) for update in updates]
    planned = rates_of_transformers(evidence.cell, total)
    return [planned[update] for update in updates]


def strange_head_rates(evidence: Evidence) -> list[float]:
    """Peak rates of the head's new modules that are not the recipe's, where it gives them one of their own."""
    trainer, wanted = evidence.trainer, evidence.cell.recipe.head_learning_rate
    if wanted is None:
        return []
    peaks = {id(p): group.get("initial_lr", wanted) for group in trainer.optimizer.param_groups for p in group["params"]}
    head = [p for name, p in trainer.stepped.items() if p.requires_grad and within(name, evidence.cell.head.new_modules)]
    return [peak for p in head if not _same_rate(peak := float(peaks.get(id(p), 0.0)), wanted)]


def stray_groups(evidence: Evidence, rates: Sequence[float]) -> list[int]:
    """Parameter groups whose rate was not, in every update, as many times the first group's as at their start."""
    starts = [group.get("initial_lr") for group in evidence.trainer.optimizer.param_groups]
    if not starts or not starts[0]:
        return []  # a schedule without a factor, as reduce_lr_on_plateau
    updates = list(zip(evidence.trainer.log.group_rates, rates, strict=True))
    factors = [start / starts[0] for start in starts]
    return [i for i, factor in enumerate(factors) if not all(_same_rate(row[i], rate * factor) for row, rate in updates)]


def _same_rate(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)


def rates_of_transformers(cell: Cell, total: int) -> list[float]:
    """The rates of a schedule that has no formula here, from transformers' own, made anew for `total` updates."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cell.recipe.learning_rate)
    schedule, rates = make_schedule(optimizer, cell, total), []
    for _ in range(total):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


def learning_rate_at(cell: Cell, update: int, total: int) -> float:
    """The recipe's rate at an update, counted from 0: a linear warm-up, then the decay of `DECAYS`."""
    recipe = cell.recipe
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
    if recipe.lr_scheduler_type == "constant":  # transformers' has no warm-up
        warmup = 0
    if update < warmup:
        return recipe.learning_rate * update / warmup
    done = min(1.0, (update - warmup) / max(1, total - warmup))
    return recipe.learning_rate * DECAYS[recipe.lr_scheduler_type](done)


# The share of the peak rate that is left after a share of the updates.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
    "constant_with_warmup": lambda done: 1.0,
}
