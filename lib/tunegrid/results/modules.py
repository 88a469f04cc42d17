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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.examples import Runs, read
from tunegrid.results.report import count
from tunegrid.results.thresholds import SMALL_NORM, TENTH

FIGURES = {"input": "taken", "output": "given", "gradient": "gradient", "weight_gradients": "weights"}  # as columns begin
TEXTS = ("module", "kind", "library")
PLACES = ("call", "depth", "source", "maker")
NUMBERS = ("norm", "projection_0", "projection_1", "projection_2")
COLUMNS = ("phase", *TEXTS, *PLACES, *(f"{name}_{number}" for name in FIGURES.values() for number in NUMBERS))
MOST = 2**14  # calls; more are of no probe
NO_NUMBER = "to or from no finite number"

# A call a row, in the order in which they ended, numbered through all phases. `call`: the how-manieth of this module. `depth`:
# how many modules were at work around it. `source`, `maker`: the numbers of the calls that made its input, and its output (its
# own or one inside); -1: none did.
Modules: TypeAlias = pd.DataFrame
Names = tuple[tuple[str, str, str], ...]  # of modules: each with its class and library


def read_both(old: Record, new: Record, runs: Runs) -> tuple[Modules, Modules] | None:
    """The figures of two records; None if one has none or its file is gone. Raises InputError for a file that is not sound."""
    before, after = (read(record, run, "modules") for record, run in zip((old, new), runs, strict=True))
    return (modules_of(before), modules_of(after)) if before is not None and after is not None else None


def modules_of(columns: Mapping[str, Sequence[Any]] | pd.DataFrame) -> Modules:
    """The calls in a file's columns; raises InputError if they are no calls."""
    rows = len(columns.get("phase", ()))
    if missing := [name for name in COLUMNS if len(columns.get(name, ())) != rows]:
        raise InputError(f"the figures of modules lack the column {missing[0]}; remove their file")
    calls = pd.DataFrame({name: columns[name] for name in COLUMNS})
    places = calls[[*PLACES]].astype(float)
    if rows > MOST or not ((places >= -1) & (places <= MOST)).all(axis=None):
        raise InputError(f"the figures of modules are not those of at most {MOST} calls; remove their file")
    return calls.astype(dict.fromkeys(PLACES, int))


def _figure(calls: Modules, figure: str) -> Any:
    """A figure's numbers, a row a call; NaN for no finite number."""
    return calls[[f"{FIGURES[figure]}_{number}" for number in NUMBERS]].to_numpy(float)


def share(before: Any, after: Any, least: float = 0.0) -> Any:
    """How far figures moved, in units of their norm, or of a least one; infinitely far to or from no finite number."""
    unknown = np.isnan(before) | np.isnan(after)
    equal = ((before == after) | (np.isnan(before) & np.isnan(after))).all(1)
    far, scale = np.abs(after - before).max(1), np.maximum(np.maximum(before[:, 0], after[:, 0]), least)
    shares = np.divide(far, scale, out=np.zeros_like(far), where=scale > 0)
    return np.where(unknown.any(1), np.where(equal, 0.0, np.inf), shares)


@dataclass(frozen=True)
class Moved:
    """How far the figures of the calls of one phase moved."""

    calls: Modules  # of the newer record
    shares: pd.DataFrame  # a row a call, a column a figure, in units of its norm; NaN: the older record has no such call

    @classmethod
    def between(cls, old: Modules, new: Modules, phase: str) -> "Moved":
        """Of two records."""
        before, calls = (one[one.phase == phase] for one in (old, new))
        same = before.drop_duplicates(["module", "call"], keep="last").set_index(["module", "call"])
        same = same.reindex(pd.MultiIndex.from_frame(calls[["module", "call"]]))
        shares = pd.DataFrame(index=calls.index)
        for figure in FIGURES:
            known, numbers = _figure(same, figure), _figure(calls, figure)
            norms = np.concatenate([_figure(before, figure)[:, 0], numbers[:, 0]])
            least = SMALL_NORM * np.fmax.reduce(norms, initial=0.0) if figure in ("gradient", "weight_gradients") else 0.0
            shares[figure] = share(known, numbers, least)
            if figure == "weight_gradients":  # another module may hold these weights now
                shares.loc[np.isnan(known).any(1) | np.isnan(numbers).any(1), figure] = 0.0
        shares.loc[same.depth.isna().to_numpy()] = np.nan
        return cls(calls, shares)

    def forward(self, bound: float) -> list[int]:
        """The innermost calls whose output moved while their input is equal, in their order."""
        far = self.shares
        return self._innermost(far.index[(far.output > bound) & (far.input <= np.minimum(bound, TENTH * far.output))])

    def backward(self, bound: float) -> tuple[list[int], float]:
        """The innermost calls, from the end, that hand on another gradient first and get an equal one; and how far it moved."""
        gradient, weights = self.shares.gradient, self.shares.weight_gradients
        moved = self.calls.index[(self.calls.maker == self.calls.index) & (gradient > bound)]
        calls = self._around(moved[-1], bound) if len(moved) else []
        unequal = set(self.calls.module[gradient > bound])
        own = self.calls.index[(weights > bound) & ~self.calls.module.isin(unequal)]
        if max(own, default=-1) > max(calls, default=-1):
            return [own[-1]], weights[own[-1]]
        return calls, gradient[moved[-1]] if len(moved) else 0.0

    def _around(self, tensor: int, bound: float) -> list[int]:
        """The calls that took in what call `tensor` made, or the smallest one around it, that get an equal gradient."""
        gradient, source, maker = self.shares.gradient, self.calls.source, self.calls.maker
        finite = ~np.isnan(_figure(self.calls, "gradient")).any(1)
        equal = self.calls.index[finite & (gradient <= min(bound, TENTH * gradient[tensor]))]
        takers = [call for call in equal if source[call] == tensor != maker[call]]
        return self._innermost(takers) or list(islice((call for call in self.outside(tensor) if call in equal), 1))

    @cached_property
    def _depth(self) -> dict[int, int]:
        return dict(zip(self.calls.index, self.calls.depth, strict=True))

    def outside(self, call: int) -> Iterator[int]:
        """The calls that a call is part of, from the smallest."""
        depth = self._depth[call]
        for other, own in self._depth.items():
            if other > call and own < depth:
                depth = own
                yield other

    def _inside(self, call: int) -> set[int]:
        """The calls that a call is made of, which ended right before it."""
        return set(takewhile(lambda other: self._depth.get(other, -1) > self._depth[call], range(call - 1, -1, -1)))

    def _innermost(self, calls: Iterable[int]) -> list[int]:
        """Those that none of the others is part of."""
        several = set(calls)
        return [call for call in sorted(several) if not self._inside(call) & several]


def first_modules(
    old: Modules, new: Modules, phase: str, tolerance: Mapping[str, float], *, backward: bool = False
) -> tuple[str, Names]:
    """The modules that changed first in a phase of the probe, in its gradients if `backward`: in words, and by name, if any."""
    moved, bound = Moved.between(old, new, phase), tolerance["module_outputs"]
    if calls := moved.forward(bound):
        words = "the output of {} changes first, {}; its input is equal"
        several = "the outputs of {} change first, {}; their inputs are equal"
        return _named(moved.calls.loc[calls], moved.shares.output[calls], words, several)
    if len(outermost := moved.calls[(moved.calls.depth == 0) & (moved.shares.input > bound)]):
        return _named(outermost[:1], moved.shares.input, "the input of {} is another already")
    calls, far = moved.backward(tolerance["module_gradients"]) if backward else ([], 0.0)
    words = "the gradient changes inside {} (last layer first), {}"
    return _named(moved.calls.loc[calls], pd.Series(far, index=calls), words) if calls else ("", ())


def _named(calls: Modules, shares: Any, one: str, several: str = "") -> tuple[str, Names]:
    """Names the first call, and the first one beside it: what is around it, or calls it again, follows from it."""
    first = calls.module.iloc[0]
    siblings = calls[[bool(name) and not f"{first}.".startswith(f"{name}.") for name in calls.module]]
    named = pd.concat([calls[:1], siblings[:1]])
    names = tuple(zip(named.module, named.kind, named.library, strict=True))
    in_words = " and ".join(f"{name or 'the model'} ({kind}, {library})" for name, kind, library in names)
    far, others = shares[named.index], siblings.module.nunique() - 1
    by = f"by {' and '.join(dict.fromkeys(map(percent, far)))} of {'its' if len(names) == 1 else 'their'} norm"
    words = (several if several and len(names) > 1 else one).format(in_words, by if np.isfinite(far).all() else NO_NUMBER)
    return words + (f"; {count(others, 'more module')} beside" if others > 0 else ""), names


def percent(share: float) -> str:
    """A share with two digits, as in "11 %"."""
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
