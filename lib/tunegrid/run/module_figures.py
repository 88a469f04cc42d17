"""Figures of single modules: of what goes in, what comes out, and the gradient there."""

import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Of what goes into a module, of what comes out, and of the gradient there: a norm, and projections on fixed random vectors. A
# tensor whose values change places keeps its norm, and one of two tensors may have a projection of the other's by chance:
# hardly all of them.
LARGE = 1e6  # what masks hold is larger, and would hide all else that goes in
PROJECTIONS = 3
MOST_PRODUCTS = 2**20  # of values with random ones that are held at once, for each projection
NUMBERS = ("norm", *(f"projection_{index}" for index in range(PROJECTIONS)))  # of each tensor
NAMES, COUNTS = ("phase", "module", "kind", "library"), ("call", "depth", "source", "maker")  # of each call of a module
TENSORS = ("taken", "given", "gradient", "weights")  # of each call, too
Columns = dict[str, list[Any]]
Projected = tuple[Tensor, Tensor]  # a norm, and projections


@dataclass
class ModuleFigures:
    """The figures of a model's modules, call by call, in the order in which calls end.

    `tunegrid.gate.modules` compares those of two runs. Hooks look at modules, and at the tensors between them, while the
    model computes; no tensor is kept, and nothing waits for a GPU before the end. A call is a row. Its `source` and `maker` are
    the calls that made what goes in and what comes out, -1 if no module did; the maker is another call if a module hands on
    what it was given as it is.
    """

    model: nn.Module
    _calls: list[dict[str, Any]] = field(default_factory=list, init=False)
    # By a tensor's id: the tensor, its version, its figures, and the call that made it.
    _seen: dict[int, tuple[weakref.ref[Tensor], int, Projected, int]] = field(default_factory=dict, init=False)

    @contextmanager
    def watch(self, phase: str, passes: int | None = None) -> Iterator[None]:
        """Note what the model computes meanwhile: all of it, or its first passes. Of a pass that fails nothing is kept."""
        names = {module: name for name, module in self.model.named_modules()}
        call_count, open_calls, times = len(self._calls), list[dict[str, Any]](), Counter[str]()
        countdown = count(-1, -1) if passes is None else count(passes, -1)  # of passes to come; of all of them there is no end

        def enter(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not open_calls and next(countdown) == 0:
                hooks.close()
                return
            name, kind = names[module], type(module)
            times[name] += 1
            call = {"phase": phase, "module": name, "kind": kind.__name__, "library": kind.__module__.partition(".")[0]}
            tensors = (leaf for leaf in tree_leaves([*inputs, *options.values()]) if isinstance(leaf, Tensor))
            figures, makers = self._look(tensors)
            source = next((maker for maker in makers if maker >= 0), -1)
            open_calls.append(call | {"call": times[name], "depth": len(open_calls), "source": source, "taken": figures})

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            call, place = open_calls.pop(), len(self._calls)
            outputs = [leaf for leaf in tree_leaves([output]) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            call["given"], makers = self._look(outputs, place)
            call["maker"] = next(iter(makers), -1)
            if outputs and outputs[0].requires_grad and call["maker"] == place:
                outputs[0].register_hook(lambda gradient: call.update(gradient=tensor_figures(gradient.detach())))  # type: ignore[no-untyped-call] # torch's own
            self._calls.append(call)

        with ExitStack() as hooks:
            for module in names:
                hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(leave))
            try:
                yield
            except BaseException:
                del self._calls[call_count:]
                raise
            finally:
                self._seen = {}

    def _look(self, tensors: Iterable[Tensor], maker: int = -1) -> tuple[Projected | None, list[int]]:
        """Figures of tensors, and the call that made each: the one before, if a tensor has passed through this as it is."""
        pairs: list[tuple[Projected, int]] = []
        for tensor in tensors:
            version = 0 if tensor.is_inference() else tensor._version
            entry = self._seen.get(id(tensor))
            if entry is None or entry[0]() is not tensor or entry[1] != version:
                values = tensor.detach()
                if maker < 0:  # so that nothing hides the rest: whole numbers by their sine, what masks hold by its sign
                    is_large = values.abs() > LARGE if values.is_floating_point() else None
                    values = torch.sin(values.float()) if is_large is None else torch.where(is_large, values.sign(), values)
                figures = tensor_figures(values)
                entry = self._seen[id(tensor)] = (weakref.ref(tensor), version, figures, maker)
            pairs.append(entry[2:])
        return _sum([figures for figures, _ in pairs]), [maker for _, maker in pairs]

    def note_weights(self, phase: str, gradients: Mapping[str, Tensor]) -> None:
        """Note the gradients of parameters, by name, with the first call of the module that holds them."""
        first_calls = {call["module"]: call for call in reversed(self._calls) if call["phase"] == phase}
        figures: dict[str, list[Projected]] = defaultdict(list)
        for name, gradient in gradients.items():
            module = name.rpartition(".")[0]
            while module and module not in first_calls:  # it only holds them, as a list of parameters does
                module = module.rpartition(".")[0]
            figures[module].append(tensor_figures(gradient))
        for module in figures.keys() & first_calls.keys():
            first_calls[module]["weights"] = _sum(figures[module])

    def columns(self) -> Columns:
        """One row per call, by column; None for what was not there, or is no finite number."""
        for call in self._calls:
            call["gradient"] = self._calls[call["maker"]].get("gradient") if call["maker"] >= 0 else None
        columns: Columns = {name: [call[name] for call in self._calls] for name in NAMES}
        columns |= {name: [float(call[name]) for call in self._calls] for name in COUNTS}
        for name in TENSORS:
            entries = [call.get(name) for call in self._calls]
            vectors = [torch.cat([norm.unsqueeze(0), projections]) for norm, projections in filter(None, entries)]
            rows = iter(torch.stack(vectors).tolist() if vectors else ())  # brought to the host at once
            table = [next(rows) if one else [math.nan] * len(NUMBERS) for one in entries]
            for i, number in enumerate(NUMBERS):
                columns[f"{name}_{number}"] = [row[i] if math.isfinite(row[i]) else None for row in table]
        random_vectors.cache_clear()  # on a GPU they would stand in the peaks of training
        return columns


def tensor_figures(tensor: Tensor) -> Projected:
    """A tensor's norm, and its projections on random vectors that are the same for every tensor of its shape.

    Sums of products, value by value: a matrix product may be what changed.
    """
    # Each vector is the product of one along the last dimension and one along all others: none is as long as the tensor.
    matrix = tensor.float().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    rows, columns = (random_vectors(length, matrix.device) for length in matrix.shape)
    squares = torch.zeros((), device=matrix.device)
    projections = torch.zeros(PROJECTIONS, device=matrix.device)
    step = max(1, MOST_PRODUCTS // matrix.shape[1])
    for start in range(0, len(matrix), step):
        piece = matrix[start : start + step]
        squares += (piece * piece).sum()
        sums = (piece * columns.unsqueeze(1)).sum(2)  # (PROJECTIONS, rows)
        projections += (sums * rows[:, start : start + step]).sum(1)
    return squares.sqrt(), projections


@lru_cache(maxsize=256)
def random_vectors(length: int, device: torch.device) -> Tensor:
    """Normal numbers (PROJECTIONS, length), the same for every tensor of this length: a projection is as large as a norm."""
    numbers = torch.randn(PROJECTIONS, length, generator=torch.Generator().manual_seed(length))
    return (numbers / numbers.square().mean(1, keepdim=True).sqrt()).to(device)


def _sum(figures: Sequence[Projected]) -> Projected | None:
    """Of several tensors: the norm of all, and the sum of their projections, in an order that counts."""
    if len(figures) < 2:
        return figures[0] if figures else None
    norms, projections = zip(*figures, strict=True)
    return torch.stack(norms).norm(), torch.stack([one * (index + 1) for index, one in enumerate(projections)]).sum(0)
