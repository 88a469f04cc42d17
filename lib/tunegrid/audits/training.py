"""Audits of training: weights, methods, rates, losses. All ranks must run these audits together."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch

from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.codecs.base import Feature, move_batch
from tunegrid.codecs.features import chunks
from tunegrid.grid.backbones import is_part
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import (
    TOKEN_ROWS,
    Answer,
    Measured,
    Method,
    adamw_bnb_8bit,
    adamw_torch,
    closest_to_limit,
)
from tunegrid.grid.recipes import Hyperparameters
from tunegrid.grid.tasks import Problem
from tunegrid.run.adamw import PACKED_TOLERANCE, STEP_TOLERANCE
from tunegrid.run.build import checksums, dtype_name
from tunegrid.run.first_updates import MOVED
from tunegrid.run.meter import SETTLED
from tunegrid.run.probe import allowance, keep_state, relative_gap, smallest_tensors
from tunegrid.run.train import LEAST_LOSS, Trainer

# Allowed gap between two ways of computing the same gradient, in units of its norm. A fault loses
# or multiplies a micro-batch, which is half of the norm. bf16 logits are accurate to 4e-3, as is
# the small gradient that remains when a model is sure.
TOLERANCE, COARSE_TOLERANCE = 0.02, 0.2
# Sizes of a weight whose moments an 8-bit optimizer packs, and of a weight whose moments stay in
# fp32.
LARGE, SMALL = 2**13, 2**6
same_rate = partial(math.isclose, rel_tol=1e-6, abs_tol=1e-12)
# Allowed growth of the bytes of all tensors. It is 0 in healthy cells on a CPU, but a GPU's kernels
# may need another workspace.
GROWTH = 0.01
CLIPPED = 1e-3  # torch divides by the norm plus 1e-6, and sums bf16 gradients in bf16
# The timescale of transformers' `inverse_sqrt` without warm-up, and the final rate of its
# `polynomial`.
TIMESCALE, LAST_RATE = 10_000, 1e-7
FEW_VALUES = 4  # so few gradients, rounded to bf16, can cancel; seen with the bias of two labels
SPAN_SHAPE = (2,)  # a position's two scores, as a start and as an end
# Allowed gaps between several ranks and a single process. On quick cells, fp32 differs by 4e-7 nats
# and 3e-7 of the gradients' norm, bf16 by 1e-4 and 2e-3. Averaging on each rank would be off by
# 2e-2 to 3e-1 nats if targets differ in length.
LOSS, COARSE_LOSS = 1e-4, 3e-3  # in nats
GRADIENT, COARSE_GRADIENT = 1e-3, 3e-2  # in units of the gradients' norm


def base_frozen(evidence: Evidence) -> Answer:
    """Tensors not declared as trainable are bit-identical after training."""
    if not evidence.cell.method.adapts:
        return None
    declared = evidence.cell.method.declared_names(evidence.model, evidence.cell)
    frozen = evidence.trainer.parameters.keys() - declared
    return expect_none(sorted(frozen & evidence.moved), f"{len(frozen)} frozen tensors", "changed")


def trains_as_declared(evidence: Evidence) -> Answer:
    """Exactly the declared parameters train, and each is in one optimizer group.

    `requires_grad` is compared with the method's declaration rather than trusted, since a library
    may freeze an adapter or unfreeze a base. Each new part of the head must train, too.
    """
    declared = evidence.cell.method.declared_names(evidence.model, evidence.cell)
    trained = evidence.trained.keys()
    faults = [f"{name} does not train" for name in sorted(declared - trained)]
    faults += [f"{name} trains" for name in sorted(trained - declared)]
    faults += [f"no tensor of {part} trains" for part in idle_parts(evidence)]
    numbers = Counter(name for name, _ in chain.from_iterable(named_groups(evidence.trainer)))
    for name in evidence.trainer.stepped:
        if name in trained and numbers[name] != 1:
            faults.append(f"{name} is in {numbers[name]} groups of the optimizer")
    return expect_none(faults, f"{len(declared)} tensors are declared to train", "differ")


def named_groups(trainer: Trainer) -> list[list[tuple[str, torch.Tensor]]]:
    """The tensors in each optimizer group, with their names in the model."""
    names = {id(parameter): name for name, parameter in trainer.stepped.items()}
    unknown = "a tensor that is none of the model's"
    groups = []
    for group in trainer.optimizer.param_groups:
        groups.append([(names.get(id(p), unknown), p) for p in group["params"]])
    return groups


def idle_parts(evidence: Evidence) -> list[str]:
    """Names of the head's parts that should train but have no trained tensor.

    The parts are new modules, adapted modules and a new token. If the method uses an adapter, an
    adapted module must train through it.
    """
    head, adapts = evidence.cell.head, evidence.cell.method.adapts
    trained = set(evidence.trained)
    adapter_names = trained & evidence.own if adapts else trained

    def idle(modules: Sequence[str], names: set[str]) -> list[str]:
        return [m for m in modules if not any(is_part(name, [m]) for name in names)]

    idle_names = idle(head.new_modules, trained) + idle(head.adapted_modules, adapter_names)
    if head.new_token and adapts and not any(TOKEN_ROWS in name for name in trained):
        idle_names.append(head.new_token)
    return idle_names


def gradients_reach(evidence: Evidence) -> Answer:
    """Every trained tensor has a fresh nonzero gradient in each update, except in unused modules.

    Updates with almost no loss do not count, nor do updates before weights have moved, since LoRA's
    A has no gradient while B is zero. Experts may lack a gradient in every update. Tensors with few
    values, such as the bias for two labels, may lack one in a tenth of the updates, since rounded
    gradients can cancel to 0.
    """
    log = evidence.trainer.log
    names = used_names(evidence)
    if log.stale:
        numbers = [update + 1 for update in log.stale]
        return expect_none(
            numbers, "gradients are of one update", "updates began with those of the update before"
        )
    if not log.moving_updates:
        return None
    faults = []
    for name in names:
        count = log.idle.get(name, 0)
        allowed = 0
        if ".experts." in name:  # a batch may route no token to an expert
            allowed = log.moving_updates
        elif evidence.trained[name].numel() <= FEW_VALUES:
            allowed = max(1, log.moving_updates // 10)
        if count > allowed:
            faults.append(f"{name} in {count} of {log.moving_updates} updates")
    return expect_none(faults, f"{len(names)} tensors get a gradient in each update", "get none")


def weights_moved(evidence: Evidence) -> Answer:
    """Every trained tensor has changed, except in unused modules."""
    names = used_names(evidence)
    if not names:
        return False, "no tensor trains"
    unmoved_names = [name for name in names if name not in evidence.moved]
    return expect_none(unmoved_names, f"{len(names)} tensors", "did not change")


def used_names(evidence: Evidence) -> list[str]:
    """Names of the trained tensors that must get a gradient.

    A pretrained module that the loss does not use, such as BERT2BERT's pooler, may stay as it is.
    So may the bias of a head that finds spans: it shifts all positions' scores equally, and the
    softmax over positions cancels the shift.
    """
    cell = evidence.cell
    called = {
        name for name, module in evidence.model.named_modules() if module in evidence.probe.called
    }
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
    """Trained weights and their moments are fp32, except moments that an optimizer packs by design.

    Even an 8-bit optimizer must keep small tensors' moments in fp32: the moments of norms, biases
    and small adapters are few and matter most. Second moments are never negative, so negative
    levels would be wasted on them.
    """
    optimizer = evidence.trainer.optimizer
    trained = {name: p for name, p in evidence.trainer.stepped.items() if p.requires_grad}
    settings = getattr(getattr(optimizer, "optimizer", optimizer), "args", None)
    min_size: int = getattr(settings, "min_8bit_size", 0)
    small_names = []
    signed_names = []
    faults = []
    moment_faults = []
    dtypes = set()
    for name, parameter in trained.items():
        if parameter.dtype is not torch.float32:
            faults.append(f"{name} is {dtype_name(parameter.dtype)}")
        for key, moment in _moments(optimizer, parameter).items():
            if (
                moment.dtype is torch.uint8
                and parameter.numel() < min_size
                and name not in small_names
            ):
                small_names.append(name)
            if moment.dtype is not torch.float32:
                dtypes.add(moment.dtype)
                moment_faults.append(f"{key} of {name} is {dtype_name(moment.dtype)}")
        # Bitsandbytes' levels of second moments.
        levels = optimizer.state.get(parameter, {}).get("qmap2")
        if levels is not None and bool((levels < 0).any()):
            signed_names.append(name)
    if small_names:
        return expect_none(
            small_names, "the optimizer leaves small moments in fp32", "packed to 8 bits"
        )
    if signed_names:
        return expect_none(
            signed_names, "second moments are positive", "packed with negative levels"
        )
    if dtypes and not dtypes <= moment_types(evidence):
        faults += moment_faults
    return expect_none(faults, f"{len(trained)} tensors and their moments", "are not fp32")


def _moments(optimizer: Any, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """The optimizer's state tensors that have the parameter's shape, by name."""
    state = optimizer.state.get(parameter, {})
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key: value for key, value in tensors.items() if value.shape == parameter.shape}


def moment_types(evidence: Evidence) -> set[torch.dtype]:
    """The types of the moments that the recipe's optimizer keeps for a large weight, and fp32.

    If the method made its own optimizer, the types of all its moments are returned.
    """
    weight = torch.zeros(LARGE, device=evidence.device)
    lone_optimizer = first_step(evidence, weight, torch.ones_like(weight))
    if lone_optimizer is not None:
        moments = _moments(lone_optimizer, weight).values()
        return {torch.float32, *(moment.dtype for moment in moments)}
    types: set[torch.dtype] = set()
    for parameter in evidence.trainer.trained:
        moments = _moments(evidence.trainer.optimizer, parameter).values()
        types.update(moment.dtype for moment in moments)
    return types


def first_step(evidence: Evidence, weight: torch.Tensor, gradient: torch.Tensor) -> Any:
    """The recipe's optimizer after its first step, on a single weight at a learning rate of 1.

    Returns None if the method made its own optimizer.
    """
    weight.requires_grad_().grad = gradient
    group = {"params": [weight], "weight_decay": evidence.cell.recipe.weight_decay}
    optimizer = evidence.cell.optimizer([group], 1.0)
    if type(optimizer) is not type(evidence.trainer.optimizer.optimizer):
        return None
    optimizer.step()
    return optimizer


def variant_applied(evidence: Evidence) -> Answer:
    """The trained model shows that its own method, and no other, trained it.

    The parameters in the method's `must_move` have changed, the weights that it rewrites differ
    from the checkpoint's, and its own check of the model passes. Returns None if the method
    declares nothing to check. `schedule_counts_updates` checks the method's rates.
    """
    method, cell = evidence.cell.method, evidence.cell
    rewrites = method.rewrites(cell)
    movers = {name for name in evidence.own if any(part in name for part in method.must_move)}
    unused_names = evidence.trained.keys() - set(used_names(evidence))
    ends = [f".{target}.weight" for target in rewrites]
    ends += [f".{target}.base_layer.weight" for target in rewrites]
    rewritten_names = {name for name in evidence.trainer.before if name.endswith(tuple(ends))}
    faults = [f"{name} did not move" for name in sorted(movers - evidence.moved - unused_names)]
    untouched_names = sorted(rewritten_names - evidence.not_from_checkpoint)
    faults += [f"{name} is still the checkpoint's" for name in untouched_names]
    for key, factor in method.rate_factors.items():
        if not any(key in name for name in evidence.trained):
            rate = f"to train at {factor:g} times the rate"
            faults.append(f"no trained tensor has {key!r} in its name, {rate}")
    # The head trains under any method.
    if method.must_move and all(is_part(name, cell.head.new_modules) for name in movers):
        faults.append(f"no trained tensor has {' or '.join(method.must_move)} in its name")
    if rewrites and not rewritten_names:
        faults.append(f"no weight belongs to {' or '.join(rewrites)}")
    answer = None
    if not evidence.trainer.paused or method.shows_early:
        answer = method.check_model(evidence.model, cell)
    if not (movers or rewrites or method.rate_factors or faults):
        return answer
    passed, detail = answer or (
        True,
        f"{len(movers)} tensors moved, {len(rewritten_names)} were rewritten",
    )
    return passed and not faults, "; ".join([detail, *faults[:3]])


def gradients_clipped(evidence: Evidence) -> Answer:
    """Gradient norms above the recipe's bound are clipped to it; other norms are left alone."""
    bound, log = evidence.cell.recipe.max_grad_norm, evidence.trainer.log
    if bound is None or not log.updates:
        return None
    if not len(log.gradient_norms) == len(log.clipped_norms) == log.updates:
        return False, f"not every update was clipped; the bound is {bound:g}"
    if not any(map(math.isfinite, log.gradient_norms)):
        return None
    clipped_updates = 0
    gaps = []
    for update, (norm, clipped) in enumerate(
        zip(log.gradient_norms, log.clipped_norms, strict=True), 1
    ):
        if not math.isfinite(norm):  # fp16 lost this update to an overflow
            continue
        clipped_updates += norm > bound
        expected = min(norm, bound)
        gaps.append(abs(clipped - expected) / expected if expected else clipped)
        if not gaps[-1] <= CLIPPED:
            norms = f"gradient norm {norm:.3g} of update {update} is {clipped:.3g} after clipping"
            return False, f"{norms}, bound {bound:g}"
    probe_gap = evidence.probe.clipped or 0.0  # the probe computes its own norms
    if not probe_gap <= CLIPPED:
        detail = f"norms and clipped gradients are off by {probe_gap:.1e} of the norm"
        return Measured(probe_gap, CLIPPED), f"{detail}, computed in fp64"
    detail = f"{clipped_updates} of {log.updates} updates clipped to {bound:g}"
    return Measured(max(*gaps, probe_gap), CLIPPED), detail


def optimizer_steps_as_defined(evidence: Evidence) -> Answer:
    """The first steps and a late step moved weights as AdamW's definition says.

    A reference AdamW gets the same gradients and rates. Separately, a weight whose gradient is zero
    must decay, since the errors of packed moments could hide missing weight decay.
    """
    adamw, decay = evidence.trainer.adamw, evidence.cell.recipe.weight_decay
    if adamw.gap is adamw.late_gap is None:
        return None
    for size in (LARGE, SMALL):
        weight = torch.linspace(-1, 1, size, device=evidence.device)
        expected = weight * (1 - decay)
        optimizer = first_step(evidence, weight, torch.zeros_like(weight))
        if optimizer is not None and not torch.allclose(weight, expected, rtol=1e-6, atol=0):
            return (
                False,
                f"a weight of {size} values without a gradient does not decay by {decay:g} of "
                "itself",
            )
    # A short run has no late update, and a run resumed from a checkpoint has no first ones.
    gaps: dict[str, Measured] = {}
    if adamw.gap is not None:
        tolerance = PACKED_TOLERANCE if adamw.packed else STEP_TOLERANCE
        gaps[f"first {MOVED} updates"] = Measured(adamw.gap, tolerance)
    if adamw.late_gap is not None:
        gaps["a late one"] = Measured(adamw.late_gap, STEP_TOLERANCE)
    detail = ", ".join(
        f"{updates} by {gap.value:.1e} of the movement" for updates, gap in gaps.items()
    )
    return closest_to_limit(gaps.values()), f"differ from AdamW's definition: {detail}"


def memory_does_not_grow(evidence: Evidence) -> Answer:
    """On average, an update leaves behind less than one tensor, and the tensors' bytes hardly grow.

    The first ten or more updates do not count, nor does the process's other memory, since oneDNN
    keeps kernels for each new shape.
    """
    held = evidence.trainer.meter.held
    updates = held[-1].updates - held[0].updates if held else 0
    if updates < SETTLED:
        return None
    more_tensors = max(0, held[-1].tensors - held[0].tensors)
    share = max(0.0, held[-1].bytes / held[0].bytes - 1)
    interval = f"{updates} updates after update {held[0].updates}"
    detail = f"{interval} left {more_tensors} tensors and {share:.1%} more bytes"
    return more_tensors < updates and Measured(share, GROWTH), detail


# AdamW's defaults as torch and bitsandbytes document them; no recipe overrides them.
BETAS, EPS = (0.9, 0.999), 1e-8
PACKED_SIZE = 4096  # tensor size from which bitsandbytes' 8-bit optimizers pack moments
DOCUMENTED = (adamw_torch, adamw_bnb_8bit)


def optimizer_set_as_declared(evidence: Evidence) -> Answer:
    """Betas and epsilon are AdamW's documented defaults, and weight decay is the recipe's.

    Only matrices decay, not biases and norms. The 8-bit optimizer keeps large tensors' moments in 8
    bits; torch's optimizer keeps all moments in fp32.
    """
    cell, trainer = evidence.cell, evidence.trainer
    is_own = type(cell.method).make_optimizer is not Method.make_optimizer
    if cell.optimizer not in DOCUMENTED or is_own:
        return None
    faults = []
    for group, members in zip(trainer.optimizer.param_groups, named_groups(trainer), strict=True):
        settings = group | {"betas": tuple(group["betas"])}
        for name, parameter in members:
            decay = cell.recipe.weight_decay if parameter.ndim > 1 else 0.0
            for field, value in {"betas": BETAS, "eps": EPS, "weight_decay": decay}.items():
                if settings[field] != value:
                    faults.append(f"{name} has {field} {settings[field]}, not {value}")
            is_packed = cell.optimizer is adamw_bnb_8bit and parameter.numel() >= PACKED_SIZE
            dtype = torch.uint8 if is_packed else torch.float32
            for field, moment in _moments(trainer.optimizer, parameter).items():
                if moment.dtype is not dtype:
                    faults.append(f"{name} has {field} in {moment.dtype}, not {dtype}")
    detail = f"betas {BETAS}, eps {EPS:g}, weight decay {cell.recipe.weight_decay:g}"
    return expect_none(faults, detail, "differ")


def schedule_counts_updates(evidence: Evidence) -> Answer:
    """Training made the planned updates, each with every tensor at its scheduled learning rate.

    The scheduled rate is the tensor's peak rate times the schedule's factor.
    """
    trainer, recipe = evidence.trainer, evidence.cell.recipe
    log = trainer.log
    # Computed here rather than taken from the trainer.
    total = recipe.planned_updates(len(trainer.features))
    count = min(log.updates, total) if trainer.paused else total
    if log.stopped:
        return None
    if not log.updates == len(log.learning_rates) == len(log.group_rates) == count:
        return (
            False,
            f"{log.updates} updates with {len(log.learning_rates)} rates, "
            f"but the recipe plans {count}",
        )
    peaks = group_peaks(evidence)
    step = 0  # the schedule's step; an update that fp16 lost does not advance it
    for update in range(count):
        share = planned_share(recipe, step, total)
        title = f"update {update + 1} of {total}"
        target = recipe.learning_rate * share
        if not same_rate(log.learning_rates[update], target):
            expected = f"the {recipe.lr_scheduler_type} schedule's {target:.3g}"
            return False, f"{title} had rate {log.learning_rates[update]:.3g}, not {expected}"
        for rate, members in zip(log.group_rates[update], peaks, strict=True):
            for name, peak in members.items():
                if not same_rate(rate, peak * share):
                    expected = f"{peak * share:.3g} (its peak: {peak:.3g})"
                    return False, f"{title}: {name} had rate {rate:.3g}, not {expected}"
        step += update not in log.skipped
    last_rate = f"the last at rate {log.learning_rates[-1]:.3g}"
    return True, f"{count} updates, {recipe.lr_scheduler_type}, {last_rate}"


def group_peaks(evidence: Evidence) -> list[dict[str, float]]:
    """The declared peak rates of the tensors in each optimizer group, by tensor name.

    If the method makes its own groups or optimizer, the groups' initial rates are used.
    """
    cell, trainer = evidence.cell, evidence.trainer
    kind = type(cell.method)
    is_own = kind.make_optimizer is not Method.make_optimizer
    is_own = is_own or kind.parameter_groups is not Method.parameter_groups
    groups = []
    for group, members in zip(trainer.optimizer.param_groups, named_groups(trainer), strict=True):
        peaks: dict[str, float] = {}
        for name, _ in members:
            peaks[name] = float(group["initial_lr"]) if is_own else declared_peak(cell, name)
        groups.append(peaks)
    return groups


def declared_peak(cell: Cell, name: str) -> float:
    """A parameter's peak rate: the head's rate, or the recipe's rate times the method's factor."""
    recipe = cell.recipe
    if recipe.head_learning_rate is not None and is_part(name, cell.head.new_modules):
        return recipe.head_learning_rate
    for part, factor in cell.method.rate_factors.items():
        if part in name:
            return recipe.learning_rate * factor
    return recipe.learning_rate


def planned_share(recipe: Hyperparameters, step: int, total: int) -> float:
    """The learning rate at a step, as a fraction of the peak rate.

    Follows the schedule as transformers documents it.
    """
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
    if name == "polynomial":  # with power 1, ending at a fixed rate
        last_share = LAST_RATE / recipe.learning_rate
        return last_share + (1 - last_share) * (1 - progress)
    assert name in ("cosine", "cosine_with_restarts"), f"schedule {name!r} has no definition here"
    return (1 + math.cos(math.pi * progress)) / 2  # one cycle, so no restarts


def loss_is_mean_over_accumulation(evidence: Evidence) -> Answer:
    """Gradients accumulated over two micro-batches equal those of the mean loss over one batch."""
    trainer = evidence.trainer
    if trainer.accelerator.scaler:  # gradients of a few rows may leave fp16's range
        return None
    group = trainer.last_group
    if len(group) < 2 and evidence.cell.recipe.gradient_accumulation_steps > 1:
        group = next(iter(trainer.updates(0)))  # an epoch may end in a partial update
    if len(group) < 2:
        return None
    # A few rows are enough, and fit in memory. The micro-batches differ in size, so the mean of
    # their means would be a different mean.
    micro_batches = [group[0][:3], group[1][:1]]
    names = smallest_tensors(evidence.trained)
    with torch.enable_grad(), keep_state(trainer):
        _, gradients = trainer.accumulate(micro_batches, names)
        loss, expected = batch_gradients(trainer, list(chain.from_iterable(micro_batches)), names)
    if loss < LEAST_LOSS:
        return None
    gap = relative_gap(gradients, expected)
    limit = allowance(trainer, TOLERANCE, COARSE_TOLERANCE)
    difference = f"gradients differ from one batch's by {gap:.1e} of their norm"
    return Measured(gap, limit), f"2 micro-batches: {difference}; the loss is {loss:.6f}"


def batch_gradients(
    trainer: Trainer,
    features: Sequence[Feature],
    names: Sequence[str],
) -> tuple[float, list[torch.Tensor]]:
    """The mean loss of some rows, and the gradients of that loss plus the method's penalty.

    The rows are split into several batches only if there are more of them than the training
    micro-batch size.
    """
    size = trainer.log.micro_batch
    parameters = [trainer.parameters[name] for name in names]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def add(term: torch.Tensor) -> None:
        for i, gradient in enumerate(torch.autograd.grad(term, parameters, allow_unused=True)):
            if gradient is not None:
                gradients[i] = gradients[i] + gradient

    batches = [trainer.codec.collate(rows) for rows in chunks(features, size)]
    count = sum(map(trainer.codec.targets, batches))
    total = 0.0
    for batch in batches:
        with trainer.accelerator.autocast():
            loss = (
                trainer.codec.loss(trainer.model, move_batch(trainer.meter.device, batch)) / count
            )
        add(loss)
        total += float(loss.detach())
    penalty = trainer.cell.method.penalty(trainer.model)
    if penalty is not None:
        add(penalty)
    return total, gradients


def ranks_train_as_one(evidence: Evidence) -> Answer:
    """Without dropout, the first update's loss and gradients equal those of a single process."""
    trainer = evidence.trainer
    if trainer.ranks.count == 1:
        return None
    group = next(iter(trainer.updates(0)))
    names = smallest_tensors(evidence.trained)
    rows = list(chain.from_iterable(group))
    with torch.enable_grad(), keep_state(trainer):
        loss, gradients = trainer.accumulate(group, names)
        expected_loss, expected = batch_gradients(trainer, rows, names)
    nats = Measured(abs(float(loss) - expected_loss), allowance(trainer, LOSS, COARSE_LOSS))
    gap = Measured(relative_gap(gradients, expected), allowance(trainer, GRADIENT, COARSE_GRADIENT))
    size = f"{trainer.ranks.count} ranks, {len(rows)} rows"
    detail = f"loss off by {nats.value:.1e} nats, gradients by {gap.value:.1e} of their norm"
    return closest_to_limit([nats, gap]), f"{size}: {detail}"


def ranks_end_alike(evidence: Evidence) -> Answer:
    """All ranks end with the same trained weights, bit for bit."""
    if evidence.trainer.ranks.count == 1:
        return None
    first, *others = evidence.trainer.ranks.gather(checksums(evidence.trained.items()))
    strays = [rank for rank, weights in enumerate(others, 1) if weights != first]
    return expect_none(strays, f"{len(first)} tensors", "ranks differ from the first")
