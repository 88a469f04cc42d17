"""Names the module of a model that changed between two records of one cell, by what the probe before training noted of each.

Of each call of a module there are four figures: its input, its output, the gradient at its output, and the gradients of its own
weights. A figure is a norm and some projections, and has moved if one of them differs by more than a share of the norm: a
bound, measured as the other tolerances of numerics. What rounds at one place is rounded again at every one behind it, so that
the bound is that of the deepest module. A figure is equal if it moved by less than that, and by less than a tenth of what the
other side of the module did.

Forward: the innermost modules whose output moved, while all their input is equal, in the order in which they ended.
Backward, from the end: the first tensor whose gradient moved; the modules that took it in, while the gradient at their own
output is equal; or, if no module took it in, the smallest around it of which that holds. A module that gives its own weights
other gradients counts as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from tunegrid.errors import InputError, first_line
from tunegrid.gate.thresholds import SMALL_NORM, TENTH
from tunegrid.record import Record
from tunegrid.runs.examples import Runs, read
from tunegrid.words import count

FIGURES = {"input": "taken", "output": "given", "gradient": "gradient", "weight_gradients": "weights"}  # as columns begin
TEXTS = ("module", "kind", "library")
PLACES = ("call", "depth", "source", "maker")
NUMBERS = ("norm", "projection_0", "projection_1", "projection_2")
COLUMNS = ("phase", *TEXTS, *PLACES, *(f"{name}_{number}" for name in FIGURES.values() for number in NUMBERS))
NO_NUMBER = "to or from a value that is not finite"

# A call a row, in the order in which they ended, numbered through all phases. `call`: the how-manieth of this module. `depth`:
# how many modules were at work around it. `source`, `maker`: the numbers of the calls that made its input, and its output (its
# own or one inside); -1: none did.
Modules: TypeAlias = pd.DataFrame
Names = tuple[tuple[str, str, str], ...]  # of modules: each with its class and library


class FirstModules(NamedTuple):
    """The modules that changed first, in words and by name, and whether it is their gradients that did."""

    words: str = ""
    names: Names = ()
    is_backward: bool = False


def read_both(old: Record, new: Record, runs: Runs) -> tuple[Modules, Modules] | None:
    """The figures of two records; None if one has none or its file is gone. Raises InputError for a file that is not sound."""
    before, after = (read(record, run, "modules") for record, run in zip((old, new), runs, strict=True))
    return (parse_modules(before), parse_modules(after)) if before is not None and after is not None else None


def parse_modules(columns: Mapping[str, Sequence[Any]] | pd.DataFrame) -> Modules:
    """The calls in a file's columns; raises InputError if they are no calls."""
    try:
        return pd.DataFrame({name: columns[name] for name in COLUMNS}).astype(dict.fromkeys(PLACES, "int32"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the figures of modules do not match their calls ({first_line(error)}); remove their file") from None


def _numbers(calls: Modules) -> Any:
    """By call, figure and number; NaN for no finite number."""
    return calls[[*COLUMNS[-len(FIGURES) * len(NUMBERS) :]]].to_numpy(float).reshape(-1, len(FIGURES), len(NUMBERS))


@dataclass(frozen=True)
class Moved:
    """How far the figures of the calls of one phase moved."""

    calls: Modules  # of the newer record
    shares: pd.DataFrame  # a row a call, a column a figure, in units of its norm; NaN: the older record has no such call

    @classmethod
    def measure(cls, old: Modules, new: Modules, phase: str) -> "Moved":
        """Of two records; to or from no finite number a figure moved infinitely far."""
        before, calls = (one[one.phase == phase] for one in (old, new))
        old_calls = before.drop_duplicates(["module", "call"], keep="last").set_index(["module", "call"])
        old_calls = old_calls.reindex(pd.MultiIndex.from_frame(calls[["module", "call"]]))
        old_numbers, numbers = _numbers(old_calls), _numbers(calls)
        largest = np.fmax.reduce(np.concatenate([_numbers(before), numbers])[:, :, 0], 0, initial=0.0)
        floor = SMALL_NORM * largest * [name in ("gradient", "weight_gradients") for name in FIGURES]
        far, scale = np.abs(numbers - old_numbers).max(2), np.maximum(np.maximum(old_numbers, numbers)[:, :, 0], floor)
        equal = ((old_numbers == numbers) | (np.isnan(old_numbers) & np.isnan(numbers))).all(2)
        share = np.where(np.isnan(far), np.inf, np.divide(far, scale, out=np.zeros_like(far), where=scale > 0))
        shares = pd.DataFrame(np.where(equal, 0.0, share), calls.index, list(FIGURES))
        shares.loc[np.isnan(far[:, -1]), "weight_gradients"] = 0.0  # another module may hold these weights now
        shares.loc[old_calls.depth.isna().to_numpy()] = np.nan
        return cls(calls, shares)

    def forward(self, bound: float) -> list[int]:
        """The innermost calls whose output moved while their input is equal, in their order."""
        far = self.shares
        return self._innermost(far.index[(far.output > bound) & (far.input <= np.minimum(bound, TENTH * far.output))])

    def backward(self, bound: float) -> tuple[list[int], float]:
        """The innermost calls, from the end, that hand on another gradient first and get an equal one; and how far it moved."""
        calls, gradient, weights = self.calls, self.shares.gradient, self.shares.weight_gradients
        tensors, inner_calls, far = calls.index[(calls.maker == calls.index) & (gradient > bound)], list[int](), 0.0
        if len(tensors):
            tensor, far = tensors[-1], gradient[tensors[-1]]
            finite = calls.filter(like="gradient_").notna().all(axis=1)
            equal = calls.index[finite & (gradient <= min(bound, TENTH * far))]
            takers = self._innermost([call for call in equal if calls.source[call] == tensor != calls.maker[call]])
            inner_calls = takers or [call for call in self.parent_calls(tensor) if call in equal][:1]
        weight_calls = calls.index[(weights > bound) & ~calls.module.isin(calls.module[gradient > bound])]
        if max(weight_calls, default=-1) > max(inner_calls, default=-1):
            return [weight_calls[-1]], weights[weight_calls[-1]]
        return inner_calls, far

    def parent_calls(self, call: int) -> Iterator[int]:
        """The calls that a call is part of, from the smallest: those that end later, and lie less deep."""
        depth = self.calls.depth[call]
        for other, level in self.calls.depth.loc[call + 1 :].items():
            if level < depth:
                depth = level
                yield other

    def _innermost(self, calls: Sequence[int]) -> list[int]:
        """Those that none of the others is part of: what a call is made of ends right before it, and lies deeper."""
        depth = self.calls.depth
        return [*calls[:1], *(call for last, call in pairwise(calls) if depth.loc[last : call - 1].min() <= depth[call])]


def first_modules(
    old: Modules, new: Modules, phase: str, tolerance: Mapping[str, float], *, backward: bool = False
) -> FirstModules:
    """The module that changed first in a phase of the probe, if any; if `backward`, in gradients where no output did."""
    movement = Moved.measure(old, new, phase)
    calls, shares = movement.forward(tolerance["module_outputs"]), movement.shares.output
    words = "the output of {} changes first, {}; its input is equal"
    if not calls:
        is_outermost = (movement.calls.depth == 0) & (movement.shares.input > tolerance["module_outputs"])
        calls, shares = [*movement.calls.index[is_outermost][:1]], movement.shares.input
        words = "the input of {} already differs"
    is_backward = backward and not calls
    if is_backward:
        calls, far = movement.backward(tolerance["module_gradients"])
        shares, words = pd.Series(far, index=calls), "the gradient changes inside {} (last layer first), {}"
    if not calls:
        return FirstModules()
    rows, share = movement.calls.loc[calls], shares[calls[0]]
    first = rows.iloc[0]
    # What is around it, or calls it again, follows from it.
    others = {name for name in rows.module if name and not f"{first.module}.".startswith(f"{name}.")}
    extent = f"by {100 * share:.{'2g' if share < 1 else '0f'}} % of its norm" if np.isfinite(share) else NO_NUMBER
    others_text = f"; {count(len(others), 'more module')} likewise" if others else ""
    sentence = words.format(f"{first.module or 'the model'} ({first.kind}, {first.library})", extent) + others_text
    return FirstModules(sentence, ((first.module, first.kind, first.library),), is_backward)
