"""Audits of what the trained model computes: forward and backward, alone and in a batch, with an adapter and without."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.codecs.base import Feature
from lib.grid.methods import Answer
from lib.grid.names import within
from lib.run.audits.built import is_adapted
from lib.run.audits.evidence import Evidence
from lib.run.audits.probing import distance, few_rows, in_full_precision, logits_of, undisturbed

MOST_VALUES = 2**24  # gradients that are compared, smallest tensors first: 64 MiB of fp32

Shapes = list[torch.Size]  # of one row's logits


def predicting_twice_is_the_same(evidence: Evidence) -> Answer:
    """In evaluation mode nothing is random: two passes over the same batch give the same bits."""
    rows = few_rows(evidence)
    with torch.no_grad(), undisturbed(evidence):
        first, second = (logits_of(evidence, rows)[0] for _ in range(2))
    if not first:
        return None
    apart = max(map(distance, first, second))
    return not apart, f"{len(rows)} rows" + (f": logits differ by {apart:.1e} of the largest" if apart else ", bit for bit")


def rows_alone_as_in_batch(evidence: Evidence) -> Answer:
    """Padding and neighbours do not matter: a row alone has the logits that it has in a batch, and gradients add up."""
    rows = few_rows(evidence)
    with undisturbed(evidence), evidence.trainer.accelerator.autocast():
        with torch.no_grad():
            together, alone = logits_of(evidence, rows)[0], [logits_of(evidence, [row])[0] for row in rows]
        if not together:
            return None
        apart = max(
            distance(_cut(batch[i], one[0]), one[0])
            for i, logits in enumerate(alone)
            for batch, one in zip(together, logits, strict=True)
        )
        fits = evidence.trainer.course.micro_batch >= len(rows)
        gap = gradient_gap(evidence, rows, [[one[0].shape for one in logits] for logits in alone]) if fits else 0.0
    print("ROWS", evidence.cell.id, apart, gap)
    return True, f"{len(rows)} rows: logits differ by {apart:.1e} of the largest, gradients by {gap:.1e} of their norm"


def _cut(row: Tensor, alone: Tensor) -> Tensor:
    """What of a padded row (...) is there when the row is alone."""
    return row[tuple(slice(0, size) for size in alone.shape)]


def gradient_gap(evidence: Evidence, rows: Sequence[Feature], shapes: Sequence[Shapes]) -> float:
    """How far the gradient of a batch is from the sum of its rows' gradients, in units of its norm."""
    chosen: list[Tensor] = []
    for parameter in sorted(evidence.trainer.trained, key=Tensor.numel):
        if sum(map(Tensor.numel, chosen)) + parameter.numel() <= MOST_VALUES:
            chosen.append(parameter)
    gap = gradients(evidence, rows, shapes, chosen)
    norm = _norm(gap)
    for row, shape in zip(rows, shapes, strict=True):
        gap = [rest - own for rest, own in zip(gap, gradients(evidence, [row], [shape], chosen), strict=True)]
    return _norm(gap) / norm if norm else 0.0


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(nn.utils.get_total_norm(tensors))


def gradients(evidence: Evidence, rows: Sequence[Feature], shapes: Sequence[Shapes], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a fixed sum of the rows' logits, of which each row has `shapes`, zeros where there is none.

    Unlike those of a loss, they do not vanish where a model is sure.
    """
    logits, _ = logits_of(evidence, rows)
    total = sum(
        (_waves(batch[i][tuple(map(slice, shape))])).sum()
        for i, row in enumerate(shapes)
        for batch, shape in zip(logits, row, strict=True)
    )
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _waves(row: Tensor) -> Tensor:
    """Each value times a weight between -1 and 1 that depends on its place alone."""
    places = torch.arange(row.numel(), device=row.device, dtype=torch.float32)
    return row.float() * torch.cos(places).reshape(row.shape)


def gradients_reach(evidence: Evidence) -> Answer:
    """Every parameter that trains gets a gradient that is not zero, now or in training; unused modules aside."""
    rows = few_rows(evidence)[:1]
    trained = {name: p for name, p in evidence.trainer.parameters.items() if p.requires_grad}
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in evidence.model.modules()]
    try:
        with undisturbed(evidence), evidence.trainer.accelerator.autocast():
            with torch.no_grad():
                logits, _ = logits_of(evidence, rows)
            if not logits:
                return None
            reached = gradients(evidence, rows, [[one[0].shape for one in logits]], list(trained.values()))
    finally:
        for handle in handles:
            handle.remove()
    dead = [name for name, gradient in zip(trained, reached, strict=True) if not gradient.any() and not _moved(evidence, trained[name])]
    used = {f"{name}.{own}" for name, m in evidence.model.named_modules() if m in called for own, _ in m.named_parameters(recurse=False)}
    required = evidence.own | {name for name in trained if within(name, evidence.cell.head.new_modules)} | used
    missing = [name for name in dead if name in required and not within(name, evidence.cell.head.optional_modules)]
    return not missing, f"{len(trained) - len(dead)} of {len(trained)} tensors" + (f"; none for {', '.join(missing[:3])}" if missing else "")


def _moved(evidence: Evidence, parameter: Tensor) -> bool:
    """Whether the optimizer remembers a gradient of this parameter; scales and maps of packed moments do not count."""
    state: dict[str, Any] = evidence.trainer.optimizer.state.get(parameter, {})
    kept = [value for name, value in state.items() if isinstance(value, Tensor) and value.ndim and "qmap" not in name]
    return any(bool(value.any()) for value in kept if value.is_floating_point())


def adapters_add_as_declared(evidence: Evidence) -> Answer:
    """An adapted layer adds to its base's output what the method declares, as LoRA scale x B A x."""
    gaps: dict[str, float] = {}
    layers = {name: module for name, module in evidence.model.named_modules() if is_adapted(module)}
    handles = [handle for name, layer in layers.items() for handle in _watched(evidence, name, layer, gaps)]
    try:
        with torch.no_grad(), undisturbed(evidence):
            logits_of(evidence, few_rows(evidence)[:2])
    finally:
        for handle in handles:
            handle.remove()
    if not gaps:
        return None
    worst = max(gaps, key=lambda name: gaps[name])
    print("ADAPT", evidence.cell.id, gaps[worst])
    return gaps[worst] <= 1, f"{len(gaps)} layers" + (f"; {worst} adds something else" if gaps[worst] > 1 else "")


def _watched(evidence: Evidence, name: str, layer: Any, gaps: dict[str, float]) -> list[Any]:
    """Hooks that write into `gaps` how far a layer is from what it should add, in units of what rounding allows."""
    base: list[Tensor] = []

    def compare(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        expected = evidence.cell.method.contribution(module, evidence.cell, inputs[0])
        if expected is None or not base:
            return
        rest = output.float() - base.pop().float() - expected
        allowed = 1e-3 * expected.norm() + 4 * torch.finfo(output.dtype).eps * output.float().norm()
        gaps[name] = float(rest.norm() / allowed)

    return [
        layer.get_base_layer().register_forward_hook(lambda module, inputs, output: base.append(output)),
        layer.register_forward_hook(compare),
    ]
