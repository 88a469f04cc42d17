"""Finds the module that changed first between two records of one cell.

In the probe, which runs a few rows before training, each call of a module has four figures: its
input, its output, the gradient at its output, and the gradients of its own weights. A figure
consists of a norm and some projections, and has moved if any of these differs by more than a bound.
The bound is a share of the norm, measured like the other tolerances of numerics. Rounding errors
grow from module to module, so the last modules set the bound. A figure counts as equal if it moved
by no more than the bound, and by no more than a tenth of the movement on the module's other side.

In the forward pass, the first modules to change are the innermost ones whose output moved although
their input did not, in the order in which their calls ended. The backward pass is searched from the
end of the model for a tensor whose gradient moved. There, the first modules are those that received
this tensor although the gradient at their own output is equal. If there are none, the smallest
module around the tensor with an equal gradient at its output is named. A module nearer the end is
named instead if the gradients of its weights moved but the gradient at its output did not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from tunegrid.errors import InputError, first_line
from tunegrid.gate.thresholds import SMALL_NORM, TENTH
from tunegrid.record import Record
from tunegrid.runs.examples import Runs, read
from tunegrid.words import count

# Figures, with the prefixes of their column names
COLUMN_PREFIXES = {
    "input": "taken",
    "output": "given",
    "gradient": "gradient",
    "weight_gradients": "weights",
}
FIGURE_PARTS = ("norm", "projection_0", "projection_1", "projection_2")
CALL_NUMBERS = tuple(
    f"{prefix}_{number}" for prefix, number in product(COLUMN_PREFIXES.values(), FIGURE_PARTS)
)
PLACE_COLUMNS = ("call", "depth", "source", "maker")
COLUMNS = ("phase", "module", "kind", "library", *PLACE_COLUMNS, *CALL_NUMBERS)
CALL = ["module", "call"]  # the columns that identify a call within its phase
INFINITE = "to or from a value that is not finite"

# One row per call, in the order in which the calls ended, numbered across all phases. `call`: its
# number among the calls of its module. `depth`: the number of calls that enclose it. `source`,
# `maker`: the numbers of the calls that made its input and its output (usually the call itself or
# one inside it); -1 if none did.
Modules: TypeAlias = pd.DataFrame
Names = tuple[tuple[str, str, str], ...]  # modules, each with its class and library


class FirstModules(NamedTuple):
    """The module that changed first; `words` also counts others that changed the same way."""

    words: str = ""
    names: Names = ()
    is_backward: bool = False  # True if only gradients of the modules changed


def read_both(old: Record, new: Record, runs: Runs) -> tuple[Modules, Modules] | None:
    """Reads both records' module figures; None if either has none or its file is missing.

    Raises InputError for an invalid file.
    """
    before = read(old, runs[0], "modules")
    after = read(new, runs[1], "modules")
    if before is None or after is None:
        return None
    return parse_modules(before), parse_modules(after)


def parse_modules(columns: Mapping[str, Sequence[Any]] | pd.DataFrame) -> Modules:
    """Builds a frame of calls from a file's columns; raises InputError if one is missing or bad."""
    try:
        calls = pd.DataFrame({name: columns[name] for name in COLUMNS})
        return calls.astype(dict.fromkeys(PLACE_COLUMNS, "int32"))
    except (KeyError, TypeError, ValueError) as error:
        cause = f"the figures of modules do not match their calls ({first_line(error)})"
        raise InputError(f"{cause}; remove their file") from None


def _numbers(calls: Modules) -> Any:
    """The numbers, of shape (calls, figures, parts of a figure); NaN if missing or not finite."""
    numbers = calls[[*CALL_NUMBERS]].to_numpy(float)
    return numbers.reshape(-1, len(COLUMN_PREFIXES), len(FIGURE_PARTS))


@dataclass(frozen=True)
class Moved:
    """The distance that each figure of one phase of the probe moved between two records."""

    calls: Modules  # calls of the newer record
    # A row per call and a column per figure, in units of the figure's norm; NaN if the older record
    # has no such call.
    shares: pd.DataFrame

    @classmethod
    def measure(cls, old: Modules, new: Modules, phase: str) -> "Moved":
        """Measures how far the figures of a phase moved.

        The movement is infinite if a number is finite in one record only, except for gradients of
        weights, where it is 0.
        """
        before = old[old.phase == phase]
        calls = new[new.phase == phase]
        old_calls = before.drop_duplicates(CALL, keep="last").set_index(CALL)
        old_calls = old_calls.reindex(pd.MultiIndex.from_frame(calls[CALL]))
        old_numbers = _numbers(old_calls)
        numbers = _numbers(calls)
        norms = np.concatenate([_numbers(before), numbers])[:, :, 0]
        largest_norms = np.fmax.reduce(norms, 0, initial=0.0)
        is_gradient = [name in ("gradient", "weight_gradients") for name in COLUMN_PREFIXES]
        floor = SMALL_NORM * largest_norms * is_gradient
        scale = np.maximum(np.maximum(old_numbers, numbers)[:, :, 0], floor)
        gaps = np.abs(numbers - old_numbers).max(2)
        share = np.divide(gaps, scale, out=np.zeros_like(gaps), where=scale > 0)
        share[np.isnan(gaps)] = np.inf
        is_equal = (old_numbers == numbers) | (np.isnan(old_numbers) & np.isnan(numbers))
        share[is_equal.all(2)] = 0.0
        shares = pd.DataFrame(share, calls.index, list(COLUMN_PREFIXES))
        # These weights may now belong to another module.
        shares.loc[np.isnan(gaps[:, -1]), "weight_gradients"] = 0.0
        shares.loc[old_calls.depth.isna().to_numpy()] = np.nan
        return cls(calls, shares)

    def forward(self, bound: float) -> list[int]:
        """The innermost calls, in order, whose output moved but whose input (almost) did not."""
        shares = self.shares
        has_equal_input = shares.input <= np.minimum(bound, TENTH * shares.output)
        return self._innermost(shares.index[(shares.output > bound) & has_equal_input])

    def backward(self, bound: float) -> tuple[list[int], float]:
        """The innermost calls in which gradients first moved, and by what share of the norm.

        The search starts at the end of the model. The gradient at the output of these calls has not
        moved.
        """
        calls = self.calls
        gradient = self.shares.gradient
        weights = self.shares.weight_gradients
        moved_tensors = calls.index[(calls.maker == calls.index) & (gradient > bound)]
        inner_calls: list[int] = []
        share = 0.0
        if len(moved_tensors):
            tensor = moved_tensors[-1]
            share = gradient[tensor]
            is_finite = calls.filter(like="gradient_").notna().all(axis=1)
            equal = calls.index[is_finite & (gradient <= min(bound, TENTH * share))]
            takers = [call for call in equal if calls.source[call] == tensor != calls.maker[call]]
            inner_calls = self._innermost(takers)
            if not inner_calls:
                inner_calls = [call for call in self.parent_calls(tensor) if call in equal][:1]
        has_moved_gradient = calls.module.isin(calls.module[gradient > bound])
        weight_calls = calls.index[(weights > bound) & ~has_moved_gradient]
        if max(weight_calls, default=-1) > max(inner_calls, default=-1):
            last = weight_calls[-1]
            return [last], weights[last]
        return inner_calls, share

    def parent_calls(self, call: int) -> Iterator[int]:
        """Yields the calls that enclose this call, innermost first; they all end after it."""
        depth = self.calls.depth[call]
        for later_call, later_depth in self.calls.depth.loc[call + 1 :].items():
            if later_depth < depth:
                depth = later_depth
                yield later_call

    def _innermost(self, calls: Sequence[int]) -> list[int]:
        """Those of the given calls that enclose no other of them.

        Calls made inside a call are deeper and come directly before it.
        """
        depth = self.calls.depth
        innermost = [*calls[:1]]
        for last, call in pairwise(calls):
            if depth.loc[last : call - 1].min() <= depth[call]:
                innermost.append(call)
        return innermost


def first_modules(
    old: Modules,
    new: Modules,
    phase: str,
    tolerance: Mapping[str, float],
    *,
    backward: bool = False,
) -> FirstModules:
    """Finds the first module that changed in a phase of the probe, if any.

    If `backward` is set and the forward pass shows no change, gradients are compared, too.
    """
    movement = Moved.measure(old, new, phase)
    bound = tolerance["module_outputs"]
    shares = movement.shares.output
    calls = movement.forward(bound)
    words = "the output of {} changes first, {}; its input is equal"
    if not calls:
        shares = movement.shares.input
        is_outermost = (movement.calls.depth == 0) & (shares > bound)
        calls = [*movement.calls.index[is_outermost][:1]]
        words = "the input of {} already differs"
    is_backward = backward and not calls
    if is_backward:
        calls, share = movement.backward(tolerance["module_gradients"])
        words = "the gradient changes inside {} (last layer first), {}"
    if not calls:
        return FirstModules()
    if not is_backward:
        share = shares[calls[0]]
    rows = movement.calls.loc[calls]
    first = rows.iloc[0]
    extent = INFINITE
    if np.isfinite(share):
        form = "2g" if share < 1 else "0f"
        extent = f"by {100 * share:.{form}} % of its norm"
    sentence = words.format(
        f"{first.module or 'the model'} ({first.kind}, {first.library})", extent
    )
    # A change of the modules around it, or of its later calls, follows from its own change.
    path = f"{first.module}."
    more_modules = {name for name in rows.module if name and not path.startswith(f"{name}.")}
    if more_modules:
        sentence += f"; {count(len(more_modules), 'more module')} likewise"
    return FirstModules(sentence, ((first.module, first.kind, first.library),), is_backward)
