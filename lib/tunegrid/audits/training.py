"""Audits of what training did: to which weights, by which method, rate and loss. Those of ranks are asked by all together."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.codecs.base import Feature, move_batch
from tunegrid.grid.backbones import is_part
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Answer, Method, adamw_bnb_8bit, adamw_torch
from tunegrid.run.adamw import PACKED_TOLERANCE, STEP_TOLERANCE
from tunegrid.run.build import checksums
from tunegrid.run.first_updates import MOVED
from tunegrid.run.meter import SETTLED
from tunegrid.run.probe import allowance, keep_state, relative_gap, smallest_tensors
from tunegrid.run.train import Trainer, make_schedule

# Between two ways to compute one gradient, in units of its norm; a fault loses or multiplies a micro-batch, half of the norm.
# bf16 logits are right to 4e-3, and so is the little that they leave of the gradient where a model is sure.
TOLERANCE, COARSE_TOLERANCE = 0.02, 0.2
LEAST = 1e-5  # nats; a model so sure leaves a gradient of which fp32 rounds off a percent
LARGE, SMALL = 2**13, 2**6  # values of a weight whose moments an optimizer of 8 bits packs, and of one whose moments stay
same_rate = partial(math.isclose, rel_tol=1e-6, abs_tol=1e-12)
GROWTH = 0.01  # of the bytes that are held; 0 in healthy cells on a CPU, and a GPU's kernels may ask for another workspace
CLIPPED = 1e-3  # torch divides by the norm plus 1e-6; bf16 gradients are summed in their own type
# Between ranks and one process, measured on quick cells: fp32 4e-7 nats and 3e-7 of the gradients' norm, bf16 1e-4 and 2e-3. A
# mean on each rank: 2e-2 to 3e-1 nats where rows have targets of different lengths.
LOSS, COARSE_LOSS = 1e-4, 3e-3  # nats
GRADIENT, COARSE_GRADIENT = 1e-3, 3e-2  # of their norm


def base_frozen(evidence: Evidence) -> Answer:
    """Frozen weights are bit-identical, and nothing but adapters and new parts trains."""
    if not evidence.cell.method.adapts:
        return None
    new_modules = evidence.cell.head.new_modules
    strays = [name for name in evidence.trained if name not in evidence.own and not is_part(name, new_modules)]
    frozen = evidence.trainer.parameters.keys() - evidence.trained.keys()
    changed_names = sorted(frozen & evidence.moved)
    return expect_none(strays + changed_names, f"{len(frozen)} frozen tensors", "base tensors train or changed")


def trains_as_declared(evidence: Evidence) -> Answer:
    """What trains are the parameters that method, base and head declare, each in one group of the optimizer.

    `requires_grad` is what is asked, not what answers: a library may freeze an adapter, or free a base.
    """
    declared = evidence.cell.method.declared_names(evidence.model, evidence.cell)
    trained = evidence.trained.keys()
    faults = [f"{name} does not train" for name in sorted(declared - trained)]
    faults += [f"{name} trains" for name in sorted(trained - declared)]
    places = Counter(id(p) for group in evidence.trainer.optimizer.param_groups for p in group["params"])
    for name, parameter in evidence.trainer.stepped.items():
        number = places[id(parameter)]
        if name in trained and number != 1:
            faults.append(f"{name} is in {number} groups of the optimizer")
    return expect_none(faults, f"{len(declared)} tensors are declared to train", "differ")


def weights_moved(evidence: Evidence) -> Answer:
    """Every group of weights that trains has changed: each of the method's own, each new part, each layer of a full model."""
    head, names = evidence.cell.head, evidence.trainer.log.reached
    groups: dict[str, list[bool]] = {}
    for name in names:
        new_module = next((module for module in head.new_modules if is_part(name, [module])), None)
        layer = re.match(r"[^\d]*\d*", name).group()  # type: ignore[union-attr] # it matches any text
        group = evidence.cell.method.group_name(name) if name in evidence.own else new_module or layer
        groups.setdefault(group, []).append(name in evidence.moved)
    unmoved_groups = sorted(group for group, flags in groups.items() if not any(flags))
    passed, detail = expect_none(unmoved_groups, f"{len(groups)} groups", "did not change")  # type: ignore[misc]
    return passed and bool(groups), detail


def trains_in_fp32(evidence: Evidence) -> Answer:
    """Weights that train are fp32, and so are their moments, but for an optimizer that packs them by design.

    Bitsandbytes' leaves moments of small tensors in fp32: those of norms, biases and small adapters are few and matter most.
    Packed second moments are never negative: a map with negative levels leaves them half of its levels.
    """
    optimizer = evidence.trainer.optimizer
    trained = {name: p for name, p in evidence.trainer.stepped.items() if p.requires_grad}
    moments = {(name, key): moment for name, p in trained.items() for key, moment in _moments(optimizer, p).items()}
    min_size: int = getattr(getattr(getattr(optimizer, "optimizer", optimizer), "args", None), "min_8bit_size", 0)
    if small_names := [name for (name, _), m in moments.items() if m.dtype is torch.uint8 and trained[name].numel() < min_size]:
        return expect_none([*dict.fromkeys(small_names)], "the optimizer leaves small moments in fp32", "packed to 8 bits")
    maps = {name: optimizer.state.get(p, {}).get("qmap2") for name, p in trained.items()}  # bitsandbytes' of second moments
    if signed_names := [name for name, levels in maps.items() if levels is not None and bool((levels < 0).any())]:
        return expect_none(signed_names, "second moments are positive", "packed with negative levels")
    moment_dtypes = {f"{key} of {name}": m.dtype for (name, key), m in moments.items() if m.dtype is not torch.float32}
    moment_dtypes = {} if not moment_dtypes or {*moment_dtypes.values()} <= moment_types(evidence) else moment_dtypes
    dtypes = {name: p.dtype for name, p in trained.items() if p.dtype is not torch.float32} | moment_dtypes
    faults = [f"{name} is {str(dtype).removeprefix('torch.')}" for name, dtype in dtypes.items()]
    return expect_none(faults, f"{len(trained)} tensors and their moments", "are not fp32")


def _moments(optimizer: Any, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an optimizer keeps for each value of a parameter."""
    state = optimizer.state.get(parameter, {})
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor) and value.shape == parameter.shape}


def moment_types(evidence: Evidence) -> set[torch.dtype]:
    """The types of moments that the same optimizer keeps for a large fp32 weight alone; none if the method made its own."""
    weight, optimizer = torch.zeros(LARGE, device=evidence.device), evidence.trainer.optimizer
    lone_optimizer = first_step(evidence, weight, torch.ones_like(weight))
    if lone_optimizer is None:
        return {m.dtype for p in evidence.trainer.trained for m in _moments(optimizer, p).values()}
    return {torch.float32, *(moment.dtype for moment in _moments(lone_optimizer, weight).values())}


def first_step(evidence: Evidence, weight: torch.Tensor, gradient: torch.Tensor) -> Any:
    """The recipe's optimizer after its first step, of this weight alone at a rate of 1; None if the method made its own."""
    weight.requires_grad_().grad = gradient
    optimizer = evidence.cell.optimizer([{"params": [weight], "weight_decay": evidence.cell.recipe.weight_decay}], 1.0)
    if type(optimizer) is not type(evidence.trainer.optimizer.optimizer):
        return None
    optimizer.step()
    return optimizer


def variant_applied(evidence: Evidence) -> Answer:
    """The trained model shows that its method trained it, and no other.

    What the method says must move has moved, weights that it rewrites are no longer the checkpoint's, its rates are the
    optimizer's, and its own look at the model finds nothing. None if it says nothing of all this.
    """
    method, cell, start_checksums = evidence.cell.method, evidence.cell, evidence.trainer.before
    movers = {name for name in evidence.own if any(part in name for part in method.must_move)}
    idle = movers - evidence.moved - (evidence.trained.keys() - evidence.trainer.log.reached)  # the loss may not use a module
    ends = tuple(f".{target}{part}.weight" for target in method.rewrites(cell) for part in ("", ".base_layer"))
    rewritten_names = {name for name in start_checksums if name.endswith(ends)}
    names_by_id = {id(p): name for name, p in evidence.trainer.stepped.items()}
    groups = evidence.trainer.optimizer.param_groups
    peaks = [(names_by_id.get(id(p), ""), group.get("initial_lr")) for group in groups for p in group["params"]]
    rates = {part: cell.recipe.learning_rate * factor for part, factor in method.rate_factors.items()}
    faults = [f"{name} did not move" for name in sorted(idle)]
    faults += [f"{name} is still the checkpoint's" for name in sorted(rewritten_names - evidence.not_from_checkpoint)]
    for part, rate in rates.items():
        part_peaks = {name: peak for name, peak in peaks if part in name}
        faults += [f"{name} has the rate {peak}, not {rate:g}" for name, peak in part_peaks.items() if peak != rate]
        faults += [] if part_peaks else [f"no trained tensor has {part!r} in its name, to train at rate {rate:g}"]
    only_head = all(is_part(name, cell.head.new_modules) for name in movers)  # the head, which trains by any method
    faults += [f"no trained tensor has {' or '.join(method.must_move)} in its name"] if method.must_move and only_head else []
    faults += [f"no weight belongs to {' or '.join(method.rewrites(cell))}"] if ends and not rewritten_names else []
    is_over = not evidence.trainer.paused or method.shows_early
    answer = method.check_model(evidence.model, cell) if is_over else None
    if not (movers or ends or rates or faults):
        return answer
    passed, detail = answer or (True, f"{len(movers)} tensors moved, {len(rewritten_names)} were rewritten")
    return passed and not faults, "; ".join([detail, *faults[:3]])


def gradients_clipped(evidence: Evidence) -> Answer:
    """Each update's gradients have, after clipping, the smaller one of their own norm and the recipe's bound."""
    bound, log = evidence.cell.recipe.max_grad_norm, evidence.trainer.log
    if bound is None or not log.updates:
        return None
    if not len(log.gradient_norms) == len(log.clipped_norms) == log.updates:
        return False, f"not every update was clipped; the bound is {bound:g}"
    if not any(map(math.isfinite, log.gradient_norms)):
        return None
    over = 0
    for update, (norm, clipped) in enumerate(zip(log.gradient_norms, log.clipped_norms, strict=True), 1):
        if not math.isfinite(norm):  # fp16 lost the update to an overflow
            continue
        over += norm > bound
        if not math.isclose(clipped, min(norm, bound), rel_tol=CLIPPED):
            return False, f"gradient norm {norm:.3g} of update {update} is {clipped:.3g} after clipping, bound {bound:g}"
    return True, f"{over} of {log.updates} updates clipped to {bound:g}"


def optimizer_steps_as_defined(evidence: Evidence) -> Answer:
    """The first steps of an AdamW and a late one moved weights by its definition, from the same gradients and rates.

    Without a gradient, a weight of its own only decays: among packed moments' errors, a decay that is lost would not show.
    """
    adamw, decay = evidence.trainer.adamw, evidence.cell.recipe.weight_decay
    if adamw.gap is adamw.late_gap is None:
        return None
    for size in (LARGE, SMALL):
        weight = torch.linspace(-1, 1, size, device=evidence.device)
        expected = weight * (1 - decay)
        optimizer = first_step(evidence, weight, torch.zeros_like(weight))
        if optimizer is not None and not torch.allclose(weight, expected, rtol=1e-6, atol=0):
            return False, f"a weight of {size} values without a gradient does not decay by {decay:g} of itself"
    # A short run has no late update, one that went on from a checkpoint no first ones.
    first_part = f"first {MOVED} updates", adamw.gap, PACKED_TOLERANCE if adamw.packed else STEP_TOLERANCE
    parts = first_part, ("a late one", adamw.late_gap, STEP_TOLERANCE)
    gaps = [(label, gap, tolerance) for label, gap, tolerance in parts if gap is not None]
    detail = ", ".join(f"{label} by {gap:.1e} of the movement" for label, gap, _ in gaps)
    return all(gap <= tolerance for _, gap, tolerance in gaps), f"differ from AdamW's definition: {detail}"


def memory_does_not_grow(evidence: Evidence) -> Answer:
    """After the last update there are as many tensors, of as many bytes, as after ten: no update leaves any behind.

    What a process holds beside tensors is no measure: oneDNN keeps kernels for each new shape.
    """
    held = evidence.trainer.meter.held
    updates = held[-1].updates - held[0].updates if held else 0
    if updates < SETTLED:
        return None
    more_tensors = max(0, held[-1].tensors - held[0].tensors)
    share = max(0.0, held[-1].bytes / held[0].bytes - 1)
    detail = f"{updates} updates after update {held[0].updates} left {more_tensors} tensors and {share:.1%} more bytes"
    return more_tensors < updates and share <= GROWTH, detail


# What torch and bitsandbytes document as the defaults of AdamW; recipes set none of them.
BETAS, EPS = (0.9, 0.999), 1e-8
DOCUMENTED = (adamw_torch, adamw_bnb_8bit)


def optimizer_set_as_declared(evidence: Evidence) -> Answer:
    """Betas and epsilon are AdamW's documented ones; matrices decay as the recipe says, biases and norms do not."""
    cell, optimizer = evidence.cell, evidence.trainer.optimizer
    if cell.optimizer not in DOCUMENTED or type(cell.method).make_optimizer is not Method.make_optimizer:
        return None
    names = {id(parameter): name for name, parameter in evidence.trainer.stepped.items()}
    faults = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter), "a tensor that is none of the model's")
            decay = cell.recipe.weight_decay if parameter.ndim > 1 else 0.0
            settings = {"betas": tuple(group["betas"]), "eps": group["eps"], "weight_decay": group["weight_decay"]}
            for field, value in {"betas": BETAS, "eps": EPS, "weight_decay": decay}.items():
                if settings[field] != value:
                    faults.append(f"{name} has {field} {settings[field]}, not {value}")
    detail = f"betas {BETAS}, eps {EPS:g}, weight decay {cell.recipe.weight_decay:g}"
    return expect_none(faults, detail, "differ")


def schedule_counts_updates(evidence: Evidence) -> Answer:
    """As many updates as the recipe plans, each with its schedule's rate for that update; all groups' rates in proportion."""
    log, recipe = evidence.trainer.log, evidence.cell.recipe
    total = recipe.planned_updates(len(evidence.trainer.features))  # whatever the trainer says
    count = min(log.updates, total) if evidence.trainer.paused else total  # of the whole schedule, what first updates have
    if log.stopped:
        return None
    rates = log.learning_rates
    if not log.updates == len(rates) == count:
        return False, f"{log.updates} updates with {len(rates)} rates, but the recipe plans {count}"
    plan = planned_rates(evidence.cell, total)
    targets = [plan[i - sum(skipped < i for skipped in log.skipped)] for i in range(count)]  # one that fp16 lost does not count
    faults = [i for i in range(count) if not same_rate(rates[i], targets[i])]
    if faults:
        return False, f"update {faults[0] + 1} of {total} had rate {rates[faults[0]]:.3g}, not {targets[faults[0]]:.3g}"
    groups = evidence.trainer.optimizer.param_groups
    if (head_rate := recipe.head_learning_rate) is not None:
        peaks = {id(p): group.get("initial_lr", head_rate) for group in groups for p in group["params"]}
        parameters = evidence.trainer.stepped.items()
        head = [p for name, p in parameters if p.requires_grad and is_part(name, evidence.cell.head.new_modules)]
        if wrong_rates := [peak for p in head if not same_rate(peak := float(peaks.get(id(p), 0.0)), head_rate)]:
            return False, f"the head trains at a peak rate of {wrong_rates[0]:.3g}, not {head_rate:.3g}"
    starts = [group.get("initial_lr") for group in groups]
    factors = [start / starts[0] for start in starts] if starts and starts[0] else []  # a rate of 0 has none
    for i, factor in enumerate(factors):
        if not all(same_rate(row[i], rate * factor) for row, rate in zip(log.group_rates, rates, strict=True)):
            return False, f"parameter group {i + 1} does not follow the schedule"
    return True, f"{count} updates, the last at rate {rates[-1]:.3g}"


# The share of the peak rate that is left after a share of the updates behind the warm-up.
DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    **dict.fromkeys(("constant", "constant_with_warmup"), lambda progress: 1.0),
}


def planned_rates(cell: Cell, total: int) -> list[float]:
    """The recipe's rate at each of `total` updates: a linear warm-up, then `DECAYS`; of other schedules transformers' own."""
    recipe = cell.recipe
    if decay := DECAYS.get(recipe.lr_scheduler_type):
        warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
        warmup = 0 if recipe.lr_scheduler_type == "constant" else warmup  # transformers' has no warm-up
        warmup_shares = [update / warmup for update in range(min(warmup, total))]
        shares = warmup_shares + [decay((update - warmup) / max(1, total - warmup)) for update in range(warmup, total)]
    else:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.learning_rate)
        shares = [make_schedule(optimizer, cell, total).lr_lambdas[0](update) for update in range(total)]
    return [recipe.learning_rate * share for share in shares]


def loss_is_mean_over_accumulation(evidence: Evidence) -> Answer:
    """Gradients accumulated over two micro-batches of an update are those of the mean loss of their rows in one batch."""
    trainer, group = evidence.trainer, evidence.trainer.last_group
    if len(group) < 2 and evidence.cell.recipe.gradient_accumulation_steps > 1:
        group = next(iter(trainer.updates(0)))  # an epoch may end with a part of an update
    if len(group) < 2:
        return None
    # Few rows show it, and fit where training fitted; of unequal number, so that a mean of means is another mean.
    micro_batches, names = [group[0][:3], group[1][:1]], smallest_tensors(evidence.trained)
    with torch.enable_grad(), keep_state(trainer):
        _, gradients = trainer.accumulate(micro_batches, names)
        loss, expected = batch_gradients(trainer, [*micro_batches[0], *micro_batches[1]], names)
    if loss < LEAST:
        return None
    gap = relative_gap(gradients, expected)
    passed = gap <= allowance(trainer, TOLERANCE, COARSE_TOLERANCE)
    return passed, f"2 micro-batches: gradients differ from one batch's by {gap:.1e} of their norm; the loss is {loss:.6f}"


def batch_gradients(trainer: Trainer, features: Sequence[Feature], names: Sequence[str]) -> tuple[float, list[torch.Tensor]]:
    """The mean loss of some rows, and its gradients; in several batches only where training never held so many rows."""
    size, parameters = trainer.log.micro_batch, [trainer.parameters[name] for name in names]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def add(term: torch.Tensor) -> None:
        for i, gradient in enumerate(torch.autograd.grad(term, parameters, allow_unused=True)):
            gradients[i] = gradients[i] if gradient is None else gradients[i] + gradient

    batches = [trainer.codec.collate(features[start : start + size]) for start in range(0, len(features), size)]
    count, total = sum(map(trainer.codec.targets, batches)), 0.0
    for batch in batches:
        with trainer.accelerator.autocast():
            loss = trainer.codec.loss(trainer.model, move_batch(trainer.meter.device, batch)) / count
        add(loss)
        total += float(loss.detach())
    if (penalty := trainer.cell.method.penalty(trainer.model)) is not None:
        add(penalty)
    return total, gradients


def ranks_train_as_one(evidence: Evidence) -> Answer:
    """Without dropout, the first update's loss and gradients are those of one process that has all its rows."""
    trainer = evidence.trainer
    if trainer.ranks.count == 1:
        return None
    group, names = next(iter(trainer.updates(0))), smallest_tensors(evidence.trained)
    rows = [feature for features in group for feature in features]
    with torch.enable_grad(), keep_state(trainer):
        loss, gradients = trainer.accumulate(group, names)
        expected_loss, expected = batch_gradients(trainer, rows, names)
    nats, gap = abs(float(loss) - expected_loss), relative_gap(gradients, expected)
    limit = allowance(trainer, LOSS, COARSE_LOSS), allowance(trainer, GRADIENT, COARSE_GRADIENT)
    detail = f"{trainer.ranks.count} ranks, {len(rows)} rows"
    return nats <= limit[0] and gap <= limit[1], f"{detail}: loss off by {nats:.1e} nats, gradients by {gap:.1e} of their norm"


def ranks_end_alike(evidence: Evidence) -> Answer:
    """All ranks end with the same weights, bit for bit."""
    if evidence.trainer.ranks.count == 1:
        return None
    first, *others = evidence.trainer.ranks.gather(checksums(evidence.trained.items()))
    strays = [rank for rank, other in enumerate(others, 1) if other != first]
    return expect_none(strays, f"{len(first)} tensors", "ranks differ from the first")
