"""Notes a few numbers of what goes into each module of a model, of what comes out, and of the gradients there.

They are a norm and projections on fixed random vectors. A tensor whose values change places keeps its norm, and one of two
tensors may have a projection of the other's by chance: hardly all three. `tunegrid.results.modules` compares the figures of two
runs, and names the module that changed. Hooks look at modules, and at the tensors between them, while the model computes. They
change nothing, and are gone afterwards. No tensor is kept, and nothing waits for a GPU before the end.
"""

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MOST_CALLS = 2**13  # that are noted: 12 layers make 300 in a pass
LARGE = 1e6  # what masks hold is larger, and would hide all else that goes in
FIGURES = ("taken", "given", "gradient", "weights")
PROJECTIONS = 3
NUMBERS = ("norm", *(f"projection_{index}" for index in range(PROJECTIONS)))  # of each figure
Columns = dict[str, list[Any]]
Figures = tuple[Tensor, Tensor]  # a norm, and projections


@dataclass(kw_only=True, eq=False)
class _Call:
    """One call of a module."""

    phase: str
    module: str
    call: int
    depth: int
    kind: str
    library: str
    source: int = -1  # the call that made what goes in; -1: no module did
    maker: int = -1  # the call that made what comes out: another one, where that is handed on as it is
    taken: Figures | None = None
    given: Figures | None = None
    gradient: Figures | None = None
    weights: Figures | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """A tensor that was looked at, and the index of the call that made it; -1: no module did."""

    tensor: "weakref.ref[Tensor]"
    version: int
    figures: Figures
    maker: int


class ModuleFigures:
    """The figures of a model's modules, call by call, in the order in which calls end."""

    def __init__(self, model: nn.Module) -> None:
        """Nothing is noted yet."""
        self._names = {module: name for name, module in model.named_modules()}
        self._calls: list[_Call] = []
        self._open: list[_Call] = []
        self._seen: dict[int, _Seen] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def noted(self, phase: str, passes: int | None = None) -> Iterator[None]:
        """Note what the model computes meanwhile: all of it, or its first passes. Of a pass that fails nothing is kept."""
        before, self._counts, handles = len(self._calls), {}, list[RemovableHandle]()
        left = count(-1, -1) if passes is None else count(passes, -1)  # of passes to come; of all of them there is no end

        def enter(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not self._open and next(left) == 0:
                _remove(handles)
            else:
                self._enter(phase, module, [*inputs, *options.values()])

        for module in self._names:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda module, inputs, output: self._leave(output)))
        try:
            yield
        except BaseException:
            del self._calls[before:]
            raise
        finally:
            _remove(handles)
            self._open, self._seen = [], {}

    def _enter(self, phase: str, module: nn.Module, inputs: Iterable[Any]) -> None:
        name, kind = self._names[module], type(module)
        self._counts[name] = self._counts.get(name, 0) + 1
        one = _Call(
            phase=phase,
            module=name,
            call=self._counts[name],
            depth=len(self._open) if len(self._calls) < MOST_CALLS else -1,
            kind=kind.__name__,
            library=kind.__module__.partition(".")[0],
        )
        self._open.append(one)
        if one.depth >= 0:
            seen = [self._look(tensor) for tensor in tensors_in(inputs)]
            one.taken = _summed([known.figures for known in seen])
            one.source = next((known.maker for known in seen if known.maker >= 0), -1)

    def _leave(self, output: Any) -> None:
        one = self._open.pop()
        if one.depth < 0:
            return
        floating = [tensor for tensor in tensors_in([output]) if tensor.is_floating_point()]
        seen = [self._look(tensor, len(self._calls)) for tensor in floating]
        one.given = _summed([known.figures for known in seen])
        one.maker = seen[0].maker if seen else -1
        if floating and floating[0].requires_grad and one.maker == len(self._calls):
            floating[0].register_hook(partial(_note_gradient, one))  # type: ignore[no-untyped-call] # torch's own
        self._calls.append(one)

    def _look(self, tensor: Tensor, maker: int = -1) -> _Seen:
        """What is known of a tensor; what has passed through a module as it is was made by the one before."""
        version = 0 if tensor.is_inference() else tensor._version
        known = self._seen.get(id(tensor))
        if known is None or known.tensor() is not tensor or known.version != version:
            figures = figures_of(tensor.detach() if maker >= 0 else tamed(tensor.detach()))
            known = _Seen(tensor=weakref.ref(tensor), version=version, figures=figures, maker=maker)
            self._seen[id(tensor)] = known
        return known

    def note_weights(self, phase: str, gradients: Mapping[str, Tensor]) -> None:
        """Note the gradients of parameters, by name, with the first call of the module that holds them."""
        first = {one.module: one for one in reversed(self._calls) if one.phase == phase}
        held: dict[str, list[Figures]] = {}
        for name, gradient in gradients.items():
            module = name.rpartition(".")[0]
            while module and module not in first:  # it only holds them, as a list of parameters does
                module = module.rpartition(".")[0]
            held.setdefault(module, []).append(figures_of(gradient))
        for module in held.keys() & first.keys():
            first[module].weights = _summed(held[module])

    def columns(self) -> Columns:
        """One row per call, by column; None for what was not there, or is no finite number."""
        texts = {name: [getattr(one, name) for one in self._calls] for name in ("phase", "module", "kind", "library")}
        counts = {name: [float(getattr(one, name)) for one in self._calls] for name in ("call", "depth", "source", "maker")}
        for one in self._calls:
            one.gradient = self._calls[one.maker].gradient if one.maker >= 0 else None
        numbers = {name: _fetched([getattr(one, name) for one in self._calls]) for name in FIGURES}
        figures = {
            f"{name}_{number}": [row[i] for row in rows] for name, rows in numbers.items() for i, number in enumerate(NUMBERS)
        }
        random_vectors.cache_clear()  # on a GPU they would stand in the peaks of training
        return texts | counts | figures


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _note_gradient(one: _Call, gradient: Tensor) -> None:
    one.gradient = figures_of(gradient.detach())


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, and in lists, tuples and dictionaries, which libraries nest."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


def tamed(tensor: Tensor) -> Tensor:
    """A tensor in which nothing hides the rest: whole numbers by their sine, what masks hold by its sign."""
    if not tensor.is_floating_point():
        return torch.sin(tensor.float())
    return torch.where(tensor.abs() > LARGE, tensor.sign(), tensor)


def figures_of(tensor: Tensor) -> Figures:
    """A tensor's norm, and its projections on random vectors that are the same for every tensor of its shape.

    A vector is the product of a random one along the last dimension and another along all others: none is ever as long as the
    tensor.
    """
    matrix = tensor.float().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    rows, columns = (random_vectors(length, matrix.device) for length in matrix.shape)
    with _without_autocast(matrix.device.type):  # which would round what is projected
        return torch.linalg.vector_norm(matrix), ((rows @ matrix) * columns).sum(1)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@lru_cache(maxsize=256)
def random_vectors(length: int, device: torch.device) -> Tensor:
    """Normal numbers (PROJECTIONS, length), the same for every tensor of this length: a projection is as large as a norm."""
    numbers = torch.randn(PROJECTIONS, length, generator=torch.Generator().manual_seed(length))
    return (numbers / numbers.square().mean(1, keepdim=True).sqrt()).to(device)


def _summed(figures: Sequence[Figures]) -> Figures | None:
    """Of several tensors: the norm of all, and the sum of their projections, in an order that counts."""
    if len(figures) < 2:
        return figures[0] if figures else None
    norms, projections = zip(*figures, strict=True)
    return torch.stack(norms).norm(), torch.stack([one * (index + 1) for index, one in enumerate(projections)]).sum(0)


def _fetched(figures: Sequence[Figures | None]) -> list[Sequence[float | None]]:
    """The norm and the projections of each as numbers, brought to the host at once."""
    there = [one for one in figures if one is not None]
    if not there:
        return [[None] * len(NUMBERS)] * len(figures)
    norms, projections = map(torch.stack, zip(*there, strict=True))
    rows = iter(torch.cat([norms.unsqueeze(1), projections], dim=1).tolist())
    return [[None] * len(NUMBERS) if one is None else [x if math.isfinite(x) else None for x in next(rows)] for one in figures]
