"""Audits of what training did: to which weights, by which method, rate and loss. Those of ranks are asked by all together."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.codecs.base import Feature, move_batch
from tunegrid.grid.backbones import is_part
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import TOKEN_ROWS, Answer, Measured, Method, adamw_bnb_8bit, adamw_torch, closest_to_limit
from tunegrid.grid.recipes import Hyperparameters
from tunegrid.grid.tasks import Problem
from tunegrid.run.adamw import PACKED_TOLERANCE, STEP_TOLERANCE
from tunegrid.run.build import checksums, dtype_name
from tunegrid.run.first_updates import MOVED
from tunegrid.run.meter import SETTLED
from tunegrid.run.probe import allowance, keep_state, relative_gap, smallest_tensors
from tunegrid.run.train import LEAST_LOSS, Trainer

# Between two ways to compute one gradient, in units of its norm; a fault loses or multiplies a micro-batch, half of the norm.
# bf16 logits are right to 4e-3, and so is the little that they leave of the gradient where a model is sure.
TOLERANCE, COARSE_TOLERANCE = 0.02, 0.2
LARGE, SMALL = 2**13, 2**6  # values of a weight whose moments an optimizer of 8 bits packs, and of one whose moments stay
same_rate = partial(math.isclose, rel_tol=1e-6, abs_tol=1e-12)
GROWTH = 0.01  # of the bytes that are held; 0 in healthy cells on a CPU, and a GPU's kernels may ask for another workspace
CLIPPED = 1e-3  # torch divides by the norm plus 1e-6; bf16 gradients are summed in their own type
TIMESCALE, LAST_RATE = 10_000, 1e-7  # transformers' `inverse_sqrt` without a warm-up; the end of its `polynomial`
SPAN_SHAPE = (2,)  # scores of a position: as a start, and as an end
# Between ranks and one process, measured on quick cells: fp32 4e-7 nats and 3e-7 of the gradients' norm, bf16 1e-4 and 2e-3. A
# mean on each rank: 2e-2 to 3e-1 nats where rows have targets of different lengths.
LOSS, COARSE_LOSS = 1e-4, 3e-3  # nats
GRADIENT, COARSE_GRADIENT = 1e-3, 3e-2  # of their norm


def base_frozen(evidence: Evidence) -> Answer:
    """All that is not declared to train is bit-identical after training."""
    if not evidence.cell.method.adapts:
        return None
    declared = evidence.cell.method.declared_names(evidence.model, evidence.cell)
    frozen = evidence.trainer.parameters.keys() - declared
    return expect_none(sorted(frozen & evidence.moved), f"{len(frozen)} frozen tensors", "changed")


def trains_as_declared(evidence: Evidence) -> Answer:
    """What trains are the parameters that method, base and head declare, new heads too; each in one group of the optimizer.

    `requires_grad` is what is asked, not what answers: a library may freeze an adapter, or free a base.
    """
    declared = evidence.cell.method.declared_names(evidence.model, evidence.cell)
    trained = evidence.trained.keys()
    faults = [f"{name} does not train" for name in sorted(declared - trained)]
    faults += [f"{name} trains" for name in sorted(trained - declared)]
    faults += [f"no tensor of {part} trains" for part in idle_parts(evidence)]
    places = Counter(id(p) for group in evidence.trainer.optimizer.param_groups for p in group["params"])
    for name, parameter in evidence.trainer.stepped.items():
        number = places[id(parameter)]
        if name in trained and number != 1:
            faults.append(f"{name} is in {number} groups of the optimizer")
    return expect_none(faults, f"{len(declared)} tensors are declared to train", "differ")


def idle_parts(evidence: Evidence) -> list[str]:
    """Parts of the head that pretraining never saw, of which nothing trains: in full, or by an adapter if the head says so."""
    head, adapts = evidence.cell.head, evidence.cell.method.adapts
    trained = set(evidence.trained)
    adapter_names = trained & evidence.own if adapts else trained
    parts = [module for module in head.new_modules if not any(is_part(name, [module]) for name in trained)]
    parts += [module for module in head.adapted_modules if not any(is_part(name, [module]) for name in adapter_names)]
    if head.new_token and adapts and not any(TOKEN_ROWS in name for name in trained):
        parts.append(head.new_token)
    return parts


def gradients_reach(evidence: Evidence) -> Answer:
    """Every tensor that trains has a gradient of its own, not zero, in each update.

    Those of unused modules are left out. Updates count once one has moved weights: LoRA's A has no
    gradient while B is zero.
    """
    log = evidence.trainer.log
    names = used_names(evidence)
    if log.stale:
        numbers = [update + 1 for update in log.stale]
        return expect_none(numbers, "gradients are of one update", "updates began with those of the update before")
    if not log.moving_updates:
        return None
    faults = []
    for name in names:
        count = log.idle.get(name, 0)
        if count and ".experts." not in name:  # a batch may send no token to an expert
            faults.append(f"{name} in {count} of {log.moving_updates} updates")
    return expect_none(faults, f"{len(names)} tensors get a gradient in each update", "get none")


def weights_moved(evidence: Evidence) -> Answer:
    """Every tensor that trains has changed; those of unused modules aside."""
    names = used_names(evidence)
    unmoved_names = [name for name in names if name not in evidence.moved]
    if not names:
        return False, "no tensor trains"
    return expect_none(unmoved_names, f"{len(names)} tensors", "did not change")


def used_names(evidence: Evidence) -> list[str]:
    """Names of the trained tensors that must get a gradient.

    A pretrained module that the loss does not use may stay as it is, as BERT2BERT's pooler. So may
    the bias of a head that finds spans: it shifts the scores of all positions alike, which the
    softmax over positions takes away again.
    """
    cell = evidence.cell
    called = {name for name, module in evidence.model.named_modules() if module in evidence.probe.called}
    names = []
    for name, parameter in evidence.trained.items():
        is_new = name in evidence.own or is_part(name, cell.head.new_modules)
        is_shift = cell.task.problem is Problem.EXTRACT and parameter.shape == SPAN_SHAPE
        if is_part(name, cell.head.optional_modules) or (is_new and is_shift):
            continue
        if is_new or name.rpartition(".")[0] in called:
            names.append(name)
    return names


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
    faults = [f"{name} is {dtype_name(dtype)}" for name, dtype in dtypes.items()]
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

    What the method says must move has moved, weights that it rewrites are no longer the checkpoint's, and its own look at the
    model finds nothing. None if it says nothing of all this. Its rates are `schedule_counts_updates`' matter.
    """
    method, cell, start_checksums = evidence.cell.method, evidence.cell, evidence.trainer.before
    movers = {name for name in evidence.own if any(part in name for part in method.must_move)}
    unused_names = evidence.trained.keys() - set(used_names(evidence))
    idle = movers - evidence.moved - unused_names
    ends = tuple(f".{target}{part}.weight" for target in method.rewrites(cell) for part in ("", ".base_layer"))
    rewritten_names = {name for name in start_checksums if name.endswith(ends)}
    faults = [f"{name} did not move" for name in sorted(idle)]
    faults += [f"{name} is still the checkpoint's" for name in sorted(rewritten_names - evidence.not_from_checkpoint)]
    for part, factor in method.rate_factors.items():
        if not any(part in name for name in evidence.trained):
            faults.append(f"no trained tensor has {part!r} in its name, to train at {factor:g} times the rate")
    only_head = all(is_part(name, cell.head.new_modules) for name in movers)  # the head, which trains by any method
    faults += [f"no trained tensor has {' or '.join(method.must_move)} in its name"] if method.must_move and only_head else []
    faults += [f"no weight belongs to {' or '.join(method.rewrites(cell))}"] if ends and not rewritten_names else []
    is_over = not evidence.trainer.paused or method.shows_early
    answer = method.check_model(evidence.model, cell) if is_over else None
    if not (movers or ends or method.rate_factors or faults):
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
    over, largest_gap = 0, 0.0
    for update, (norm, clipped) in enumerate(zip(log.gradient_norms, log.clipped_norms, strict=True), 1):
        if not math.isfinite(norm):  # fp16 lost the update to an overflow
            continue
        over += norm > bound
        expected = min(norm, bound)
        gap = abs(clipped - expected) / expected if expected else clipped
        largest_gap = max(largest_gap, gap)
        if not gap <= CLIPPED:
            return False, f"gradient norm {norm:.3g} of update {update} is {clipped:.3g} after clipping, bound {bound:g}"
    gap = evidence.probe.clipped or 0.0  # its norms are computed here
    if not gap <= CLIPPED:
        return Measured(gap, CLIPPED), f"norms and clipped gradients are off by {gap:.1e} of the norm, computed in fp64"
    return Measured(max(largest_gap, gap), CLIPPED), f"{over} of {log.updates} updates clipped to {bound:g}"


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
    gaps: dict[str, Measured] = {}
    if adamw.gap is not None:
        tolerance = PACKED_TOLERANCE if adamw.packed else STEP_TOLERANCE
        gaps[f"first {MOVED} updates"] = Measured(adamw.gap, tolerance)
    if adamw.late_gap is not None:
        gaps["a late one"] = Measured(adamw.late_gap, STEP_TOLERANCE)
    detail = ", ".join(f"{updates} by {gap.value:.1e} of the movement" for updates, gap in gaps.items())
    return closest_to_limit(gaps.values()), f"differ from AdamW's definition: {detail}"


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
    return more_tensors < updates and Measured(share, GROWTH), detail


# What torch and bitsandbytes document as the defaults of AdamW; recipes set none of them.
BETAS, EPS = (0.9, 0.999), 1e-8
PACKED_SIZE = 4096  # values from which bitsandbytes' 8-bit optimizers pack a tensor's moments
DOCUMENTED = (adamw_torch, adamw_bnb_8bit)


def optimizer_set_as_declared(evidence: Evidence) -> Answer:
    """Betas and epsilon are AdamW's documented ones; matrices decay as the recipe says, biases and norms do not.

    The optimizer that is named for its 8 bits keeps the moments of large tensors so, and torch's none.
    """
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
            is_packed = cell.optimizer is adamw_bnb_8bit and parameter.numel() >= PACKED_SIZE
            expected_dtype = torch.uint8 if is_packed else torch.float32
            for field, moment in _moments(optimizer, parameter).items():
                if moment.dtype is not expected_dtype:
                    faults.append(f"{name} has {field} in {moment.dtype}, not {expected_dtype}")
    detail = f"betas {BETAS}, eps {EPS:g}, weight decay {cell.recipe.weight_decay:g}"
    return expect_none(faults, detail, "differ")


def schedule_counts_updates(evidence: Evidence) -> Answer:
    """As many updates as planned, in each of which every tensor has its own peak rate's share."""
    trainer, recipe = evidence.trainer, evidence.cell.recipe
    log = trainer.log
    total = recipe.planned_updates(len(trainer.features))  # whatever the trainer says
    count = min(log.updates, total) if trainer.paused else total  # of the whole schedule, what first updates have
    if log.stopped:
        return None
    if not log.updates == len(log.learning_rates) == len(log.group_rates) == count:
        return False, f"{log.updates} updates with {len(log.learning_rates)} rates, but the recipe plans {count}"
    peaks = group_peaks(evidence)
    step = 0  # of the schedule, which an update that fp16 lost does not advance
    for update in range(count):
        share = planned_share(recipe, step, total)
        place = f"update {update + 1} of {total}"
        target = recipe.learning_rate * share
        if not same_rate(log.learning_rates[update], target):
            cause = f"{recipe.lr_scheduler_type} schedule"
            return False, f"{place} had rate {log.learning_rates[update]:.3g}, not the {cause}'s {target:.3g}"
        for rate, members in zip(log.group_rates[update], peaks, strict=True):
            for name, peak in members.items():
                if not same_rate(rate, peak * share):
                    return False, f"{place}: {name} had rate {rate:.3g}, not {peak * share:.3g} (its peak: {peak:.3g})"
        step += update not in log.skipped
    return True, f"{count} updates, {recipe.lr_scheduler_type}, the last at rate {log.learning_rates[-1]:.3g}"


def group_peaks(evidence: Evidence) -> list[dict[str, float]]:
    """The declared peak rates of each group's tensors, by name, whatever the groups say.

    Only if a method makes groups of its own, or its optimizer, those of the groups count.
    """
    cell, trainer = evidence.cell, evidence.trainer
    kind = type(cell.method)
    is_own = kind.make_optimizer is not Method.make_optimizer or kind.parameter_groups is not Method.parameter_groups
    names = {id(parameter): name for name, parameter in trainer.stepped.items()}
    groups = []
    for group in trainer.optimizer.param_groups:
        peaks: dict[str, float] = {}
        for parameter in group["params"]:
            name = names.get(id(parameter), "a tensor that is none of the model's")
            peaks[name] = float(group["initial_lr"]) if is_own else declared_peak(cell, name)
        groups.append(peaks)
    return groups


def declared_peak(cell: Cell, name: str) -> float:
    """The peak rate of a parameter: its head's, its method's, or the recipe's."""
    recipe = cell.recipe
    if recipe.head_learning_rate is not None and is_part(name, cell.head.new_modules):
        return recipe.head_learning_rate
    for part, factor in cell.method.rate_factors.items():
        if part in name:
            return recipe.learning_rate * factor
    return recipe.learning_rate


def planned_share(recipe: Hyperparameters, step: int, total: int) -> float:
    """The share of the peak rate in a step of the schedule, as transformers documents it."""
    name = recipe.lr_scheduler_type
    if name == "constant":  # without a warm-up
        return 1.0
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
    if step < warmup:
        return step / warmup
    if name == "constant_with_warmup":
        return 1.0
    if name == "inverse_sqrt":
        timescale = warmup or TIMESCALE
        return math.sqrt(timescale / (step - warmup + timescale))
    progress = (step - warmup) / max(1, total - warmup)
    if name == "linear":
        return 1 - progress
    if name == "polynomial":  # of power 1, down to a rate of its own
        last_share = LAST_RATE / recipe.learning_rate
        return last_share + (1 - last_share) * (1 - progress)
    assert name in ("cosine", "cosine_with_restarts"), f"schedule {name!r} has no definition here"
    return (1 + math.cos(math.pi * progress)) / 2  # one cycle, so there are no restarts


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
    if loss < LEAST_LOSS:
        return None
    gap = relative_gap(gradients, expected)
    limit = allowance(trainer, TOLERANCE, COARSE_TOLERANCE)
    detail = f"2 micro-batches: gradients differ from one batch's by {gap:.1e} of their norm; the loss is {loss:.6f}"
    return Measured(gap, limit), detail


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
    nats = Measured(abs(float(loss) - expected_loss), allowance(trainer, LOSS, COARSE_LOSS))
    gap = Measured(relative_gap(gradients, expected), allowance(trainer, GRADIENT, COARSE_GRADIENT))
    detail = f"{trainer.ranks.count} ranks, {len(rows)} rows"
    detail = f"{detail}: loss off by {nats.value:.1e} nats, gradients by {gap.value:.1e} of their norm"
    return closest_to_limit([nats, gap]), detail


def ranks_end_alike(evidence: Evidence) -> Answer:
    """All ranks end with the same weights, bit for bit."""
    if evidence.trainer.ranks.count == 1:
        return None
    first, *others = evidence.trainer.ranks.gather(checksums(evidence.trained.items()))
    strays = [rank for rank, other in enumerate(others, 1) if other != first]
    return expect_none(strays, f"{len(first)} tensors", "ranks differ from the first")
