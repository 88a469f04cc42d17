"""Names the module of a model that changed between two records of one cell, by what the probe before training noted of each.

Of each call of a module there are four figures: what went in, what came out, the gradient there, and the gradients of its own
weights. A figure is a norm and some projections, and has moved where one of them differs by more than a share of the norm: a
bound, measured as the tolerances of `tunegrid.results.numerics`. What rounds at one place is rounded again at every one behind
it, so that the bound is that of the deepest module. A figure is equal where it moved by less than that, and by less than a
tenth of what the other side of the module did.

Forward: the innermost modules whose output moved, while all that goes in is equal, in the order in which they ended.
Backward, from the end: the first tensor whose gradient moved; the modules that took it in, while the gradient at their own
output is equal; or, where no module took it in, the smallest around it of which that holds. A module that gives its own weights
other gradients counts as well.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.examples import read_modules

Figure = tuple[float | None, ...]  # a norm, and projections
FIGURES = ("taken", "given", "gradient", "weights")
TEXTS = ("module", "kind", "library")
PLACES = ("call", "depth", "source", "maker")
NUMBERS = ("norm", "projection_0", "projection_1", "projection_2")
COLUMNS = ("phase", *TEXTS, *PLACES, *(f"{name}_{number}" for name in FIGURES for number in NUMBERS))
MOST = 2**14  # calls; more are of no probe
SMALL = 1e-3  # of the largest norm of a gradient: what is smaller has no digits to compare
TENTH = 0.1  # of what moved on the other side of a module: a bound alone is crossed anywhere by what grows slowly
NO_NUMBER = "to or from no finite number"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module.

    Attributes:
        module: its name in the model.
        call: the how-manieth of this module.
        depth: how many modules were at work around it.
        kind, library: of its class.
        source: the index of the call that made what goes in; -1: no module did.
        maker: the index of the call that made what comes out, its own or that of a module inside; -1: nothing came out.
        figures: by name, of `FIGURES`.
    """

    module: str
    call: int
    depth: int
    kind: str
    library: str
    source: int
    maker: int
    figures: Mapping[str, Figure]

    def has(self, name: str) -> bool:
        """Whether a figure is there, and finite."""
        return None not in self.figures[name]

    @property
    def words(self) -> str:
        """What a sentence calls the module."""
        return f"{self.module or 'the model'} ({self.kind}, {self.library})"


Modules = Mapping[str, Mapping[int, Call]]  # calls in the order in which they ended, by index, by phase of the probe


Runs = tuple[Path | None, Path | None]  # the files of two records; figures lie beside them, or in this machine's store


def read_both(old: Record, new: Record, runs: Runs) -> tuple[Modules, Modules] | None:
    """The figures of two records; None where one has none, as records had before there were any, or where its file is gone.

    Raises:
        InputError: where a file is not sound.
    """
    before, after = (read_modules(record, run) for record, run in zip((old, new), runs, strict=True))
    return (modules_of(before), modules_of(after)) if before and after else None


def modules_of(columns: Mapping[str, Sequence[Any]]) -> Modules:
    """The calls in a file's columns; raises InputError where they are no calls."""
    count = len(columns.get("phase", ()))
    if missing := [name for name in COLUMNS if len(columns.get(name, ())) != count]:
        raise InputError(f"the figures of modules lack the column {missing[0]}; remove their file")
    if any(value is None or not -1 <= value <= MOST for name in PLACES for value in columns[name]) or count > MOST:
        raise InputError(f"the figures of modules are not those of at most {MOST} calls; remove their file")
    phases: dict[str, dict[int, Call]] = {}
    for index, phase in enumerate(columns["phase"]):
        module, kind, library = (columns[name][index] for name in TEXTS)
        call, depth, source, maker = (int(columns[name][index]) for name in PLACES)
        phases.setdefault(phase, {})[index] = Call(
            module=module,
            kind=kind,
            library=library,
            call=call,
            depth=depth,
            source=source,
            maker=maker,
            figures={name: tuple(columns[f"{name}_{number}"][index] for number in NUMBERS) for name in FIGURES},
        )
    return phases


@dataclass(frozen=True)
class Moved:
    """How far the figures of the calls of one phase moved, those that both records have, in the order of the newer one.

    Attributes:
        calls: by index.
        shares: how far each figure of a call moved, as a share of its norm.
    """

    calls: Mapping[int, Call]
    shares: Mapping[int, Mapping[str, float]]

    @classmethod
    def between(cls, old: Modules, new: Modules, phase: str) -> "Moved":
        """Of two records."""
        before = {(one.module, one.call): one for one in old.get(phase, {}).values()}
        calls = new.get(phase, {})
        least = {name: SMALL * _largest(name, [*before.values(), *calls.values()]) for name in ("gradient", "weights")}
        both = {index: (before.get((one.module, one.call)), one) for index, one in calls.items()}
        shares = {
            index: {name: share(known.figures[name], one.figures[name], least.get(name, 0.0)) for name in FIGURES}
            | ({} if known.has("weights") and one.has("weights") else {"weights": 0.0})  # another module may hold them now
            for index, (known, one) in both.items()
            if known
        }
        return cls(calls, shares)

    def furthest(self, *names: str) -> float:
        """How far any of these figures moved at most."""
        return max((shares[name] for shares in self.shares.values() for name in names), default=0.0)

    def _moved(self, index: int, name: str, bound: float) -> bool:
        return index in self.shares and self.shares[index][name] > bound

    def _equal(self, index: int, name: str, bound: float, other: float = math.inf) -> bool:
        """Whether a figure is equal beside another one, which moved so far."""
        return index in self.shares and self.shares[index][name] <= min(bound, other * TENTH)

    def forward(self, bound: float) -> list[int]:
        """The innermost calls whose output moved, and what goes in is equal, in their order."""
        moved = [index for index in self.calls if self._moved(index, "given", bound)]
        return self._innermost(index for index in moved if self._equal(index, "taken", bound, self.shares[index]["given"]))

    def backward(self, bound: float) -> tuple[list[int], float]:
        """The innermost calls that hand on another gradient first, from the end, and get an equal one; and how far it moved."""
        moved = [i for i, one in self.calls.items() if one.maker == i and self._moved(i, "gradient", bound)]
        found = self._around(moved[-1], bound) if moved else []
        unequal = {one.module for i, one in self.calls.items() if self._moved(i, "gradient", bound)}
        own = [i for i, one in self.calls.items() if self._moved(i, "weights", bound) and one.module not in unequal]
        if max(own, default=-1) > max(found, default=-1):
            return own[-1:], self.shares[own[-1]]["weights"]
        return found, self.shares[moved[-1]]["gradient"] if moved else 0.0

    def _around(self, tensor: int, bound: float) -> list[int]:
        """The calls that took in what call `tensor` made, or the smallest one around it, where they get an equal gradient."""
        far = self.shares[tensor]["gradient"]
        equal = {i for i, one in self.calls.items() if one.has("gradient") and self._equal(i, "gradient", bound, far)}
        takers = [i for i, one in self.calls.items() if one.source == tensor != one.maker and i in equal]
        return self._innermost(takers) or list(islice((i for i in self.outside(tensor) if i in equal), 1))

    def inside(self, index: int) -> list[int]:
        """The calls that a call is made of, which ended right before it."""
        before = takewhile(lambda i: i in self.calls, range(index - 1, -1, -1))
        return list(takewhile(lambda i: self.calls[i].depth > self.calls[index].depth, before))

    def outside(self, index: int) -> Iterator[int]:
        """The calls that a call is part of, from the smallest."""
        depth = self.calls[index].depth
        for i, one in self.calls.items():
            if i > index and one.depth < depth:
                depth = one.depth
                yield i

    def _innermost(self, found: Iterable[int]) -> list[int]:
        """Those that none of the others is part of."""
        found = list(found)
        return [index for index in found if not set(self.inside(index)) & set(found)]


def _largest(name: str, calls: Iterable[Call]) -> float:
    return max((norm for one in calls if (norm := one.figures[name][0]) is not None), default=0.0)


def share(before: Figure, after: Figure, least: float = 0.0) -> float:
    """How far a figure moved, in units of its norm, or of a least one; infinitely far where one of the two is no number."""
    if None in before or None in after:
        return 0.0 if before == after else math.inf
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    scale = max(*pairs[0], least)
    return max(abs(old - new) for old, new in pairs) / scale if scale else 0.0


# Sentences' parts


def first_forward(both: tuple[Modules, Modules], phase: str, bound: float) -> str:
    """Which module's output moved first, or into which of the outermost another input goes already; empty where none moved."""
    moved = Moved.between(*both, phase)
    if not (found := moved.forward(bound)):
        other = (
            one for index, one in moved.calls.items() if not one.depth and moved.shares.get(index, {}).get("taken", 0) > bound
        )
        return next((f"what goes into {one.words} is another already" for one in other), "")
    far = [moved.shares[index]["given"] for index in found]
    return _sentence([moved.calls[index] for index in found], far, "whose output moved", "what goes in is equal")


def first_backward(both: tuple[Modules, Modules], phase: str, bound: float) -> str:
    """Which module hands on another gradient first, from the end; empty where none does, or the loss gives another already."""
    moved = Moved.between(*both, phase)
    found, far = moved.backward(bound)
    what, equal = "from the end that hands on another gradient", "the gradient at its output is equal"
    return _sentence([moved.calls[index] for index in found], [far] * len(found), what, equal)


def _sentence(calls: Sequence[Call], far: Sequence[float], what: str, equal: str) -> str:
    """Names the first call, and the first one beside it: what is around it, or calls it again, follows from it."""
    if not calls:
        return ""
    beside = [index for index, one in enumerate(calls) if not _holds(one.module, calls[0].module)]
    shown = [0, *beside[:1]]
    words = " and ".join(calls[index].words for index in shown)
    by = " and ".join(dict.fromkeys(f"by {far[index]:.1e}" if math.isfinite(far[index]) else NO_NUMBER for index in shown))
    more = len({calls[index].module for index in beside}) - 1
    others = f"; {more} more beside them" if more > 0 else ""
    return f"{words} {'are' if beside else 'is'} the first {what}, {by}; {equal}{others}"


def _holds(module: str, other: str) -> bool:
    """Whether a module is another one, or that one is part of it, by their names."""
    return not module or f"{other}.".startswith(f"{module}.")


# Figures


def furthest(old: Modules, new: Modules) -> dict[str, float]:
    """How far outputs and gradients of modules moved at most, in any phase of the probe."""
    phases = [Moved.between(old, new, phase) for phase in new]
    return {
        "module_outputs": max((moved.furthest("taken", "given") for moved in phases), default=0.0),
        "module_gradients": max((moved.furthest("gradient", "weights") for moved in phases), default=0.0),
    }
