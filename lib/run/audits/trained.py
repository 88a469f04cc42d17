"""Audits of what training did: to which weights, at which rate, with which loss."""

import math
import re
from collections.abc import Callable

import torch

from lib.grid.cells import Cell
from lib.grid.methods import Answer
from lib.grid.names import within
from lib.run.audits.evidence import Evidence
from lib.run.training import make_schedule

# Between two ways to compute one loss: bf16 sums differ by up to a percent, the fault is a factor of at least two.
TOLERANCE = 0.02
LEAST = 1e-4  # nats; a loss below it is rounding


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
    for name in trainer.reached:
        groups.setdefault(_group(evidence, name), []).append(evidence.after[name] != trainer.before[name])
    unreached = [name for name, p in trainer.parameters.items() if p.requires_grad and name not in trainer.reached]
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


def variant_applied(evidence: Evidence) -> Answer:
    """What the method itself says of the trained model: that it trained it, and no other method."""
    return evidence.cell.method.holds_after(evidence)


def loss_is_mean_over_accumulation(evidence: Evidence) -> Answer:
    """Two micro-batches of the last update, weighted as in training, have the loss of their rows in one batch."""
    group = evidence.trainer.last_group[:2]  # two show it, and fit where training fitted by halving
    if len(group) < 2:
        return None
    with torch.no_grad():
        evidence.model.eval()
        together = evidence.trainer.mean_loss([[feature for features in group for feature in features]])
        apart = evidence.trainer.mean_loss(group)
    same = math.isclose(apart, together, rel_tol=TOLERANCE, abs_tol=LEAST)
    return same, f"{len(group)} micro-batches: {apart:.6f}, in one batch {together:.6f}"


def schedule_counts_updates(evidence: Evidence) -> Answer:
    """Every update had the learning rate of the recipe's schedule, counted in updates."""
    rates, total = evidence.trainer.course.learning_rates, evidence.trainer.total
    if evidence.trainer.course.stopped:
        return None
    lost = evidence.trainer.course.skipped
    places = [i - sum(update < i for update in lost) for i in range(len(rates))]
    if evidence.cell.recipe.lr_scheduler_type in DECAYS:
        wanted = [learning_rate_at(evidence.cell, place, total) for place in places]
    else:
        planned = rates_of_transformers(evidence.cell, total)
        wanted = [planned[place] for place in places]
    odd = [i for i, (a, b) in enumerate(zip(rates, wanted, strict=True)) if not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)]
    if odd or not rates:
        return (
            False,
            f"update {odd[0] + 1} of {total} had {rates[odd[0]]:.3g}, not {wanted[odd[0]]:.3g}" if odd else "no update",
        )
    return True, f"{total} updates, the last at {rates[-1]:.3g}"


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
