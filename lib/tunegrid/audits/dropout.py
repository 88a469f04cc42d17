"""The audit of dropout: whether all that a model's layers declare is at work in training mode.

A dropout that is a module must be called, and drop. One that is only a number, such as attention's under SDPA, must change
the logits when it is the only one that is on. That none is at work in evaluation is `predicting_twice_is_the_same`'s matter.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunegrid.audits.evidence import Evidence
from tunegrid.grid.methods import Answer
from tunegrid.run.probe import hooked, logits_of, undisturbed

MORE_THAN_LUCK = 6.0  # standard errors of a share of dropped values
HOLDERS = (nn.ModuleDict, nn.ModuleList)  # they are never called themselves


@dataclass(frozen=True, eq=False)
class Declared:
    """A rate of dropout that a layer declares: `attribute` of `holder`; `user` is the module that should apply it."""

    name: str
    holder: nn.Module
    attribute: str
    user: nn.Module

    @property
    def rate(self) -> float:
        """The share of values that are dropped."""
        return float(getattr(self.holder, self.attribute))


def dropout_drops(evidence: Evidence) -> Answer:
    """Every dropout that the layers declare is at work in training mode, at its own rate."""
    declared = declared_dropouts(evidence.model)
    if not declared:
        return None
    with torch.no_grad(), undisturbed(evidence.trainer, training=True):
        shares, called = _dropped(evidence)
        modules = [one for one in declared if one.holder in shares]
        odd = [one.name for one in modules if not _as_declared(one.rate, *shares[one.holder])]
        rest = [one for one in declared if one.holder not in shares and one.user in called]
        kinds = {_kind(one.name): [other for other in rest if _kind(other.name) == _kind(one.name)] for one in rest}
        idle = [kind for kind, members in kinds.items() if not _has_effect(evidence, declared, members)]
    if odd or idle:
        return False, f"{len(odd)} drop another share than declared {odd[:2]}, without effect: {', '.join(idle) or 'none'}"
    return True, f"{len(modules)} drop what they declare, {len(rest)} by their effect"


def declared_dropouts(model: nn.Module) -> list[Declared]:
    """Every `nn.Dropout`, and every number between 0 and 1 whose name says dropout."""
    modules = dict(model.named_modules())
    declared = []
    for name, module in modules.items():
        if isinstance(module, nn.Dropout):
            declared.append(Declared(name, module, "p", _user(modules, name)))
        rates = [key for key, value in vars(module).items() if "dropout" in key and isinstance(value, float)]
        declared += [Declared(f"{name}.{key}", module, key, module) for key in rates]
    return [one for one in declared if 0 < one.rate < 1]


def _user(modules: dict[str, nn.Module], name: str) -> nn.Module:
    """The module around a dropout."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(modules[name], HOLDERS):
            break
    return modules[name]


def _kind(name: str) -> str:
    """A name without its numbers: the same place in every layer."""
    return re.sub(r"\d+", "N", name)


def _dropped(evidence: Evidence) -> tuple[dict[nn.Module, tuple[int, int]], set[nn.Module]]:
    """Of one pass: how many values each dropout lost of how many it got, and all modules that were called."""
    rows = evidence.probe.rows
    shares: dict[nn.Module, tuple[int, int]] = {}
    called: set[nn.Module] = set()

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        called.add(module)
        if isinstance(module, nn.Dropout):
            values = inputs[0] != 0
            shares[module] = int(((output == 0) & values).sum()), int(values.sum())

    with hooked(evidence.model.modules(), look):
        logits_of(evidence.trainer, rows)
    return shares, called


def _as_declared(rate: float, lost: int, values: int) -> bool:
    return abs(lost - rate * values) <= MORE_THAN_LUCK * math.sqrt(rate * (1 - rate) * values)


def _has_effect(evidence: Evidence, declared: Iterable[Declared], members: Iterable[Declared]) -> bool:
    """Whether two passes differ when of all dropouts only these are on."""
    rows = evidence.probe.rows
    with _only(declared, members):
        first, second = (logits_of(evidence.trainer, rows)[0] for _ in range(2))
    return any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))


@contextmanager
def _only(declared: Iterable[Declared], members: Iterable[Declared]) -> Iterator[None]:
    off = [(one, getattr(one.holder, one.attribute)) for one in declared if one not in members]
    for one, _ in off:
        setattr(one.holder, one.attribute, 0.0)
    try:
        yield
    finally:
        for one, rate in off:
            setattr(one.holder, one.attribute, rate)
