"""Reduces each module's inputs, outputs and gradients to a few figures."""

import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Inputs, outputs and gradients are each reduced to a norm and projections on fixed random vectors.
# Permuted values keep their norm, and two tensors may share one projection by chance, but hardly
# all projections.
LARGE = 1e6  # masks have larger values, which would hide all other inputs
PROJECTIONS = 3
MOST_PRODUCTS = 2**20  # maximum number of products held at a time, per projection
# Figures of each tensor.
NUMBERS = ("norm", *(f"projection_{index}" for index in range(PROJECTIONS)))
# Columns with one row per call of a module.
NAME_COLUMNS = ("phase", "module", "kind", "library")
COUNT_COLUMNS = ("call", "depth", "source", "maker")
TENSOR_COLUMNS = ("taken", "given", "gradient", "weights")
Columns = dict[str, list[Any]]
Projected = tuple[Tensor, Tensor]  # a norm and projections


@dataclass
class ModuleFigures:
    """Records figures of a model's modules, call by call, in the order in which calls end.

    `tunegrid.gate.modules` compares the figures of two runs. Hooks compute the figures while the
    model runs; they keep none of its tensors, and nothing waits for a GPU before `columns` is
    called. Each call is a row. Its `source` and `maker` are the numbers of the calls that made its
    input and its output, or -1 if no call did. If a module returns an input or an inner module's
    output unchanged, the maker is the earlier call that made it.
    """

    model: nn.Module
    _calls: list[dict[str, Any]] = field(default_factory=list, init=False)
    # By a tensor's id: a reference to it, its version, its figures, and the call that made it.
    _seen: dict[int, tuple[weakref.ref[Tensor], int, Projected, int]] = field(
        default_factory=dict,
        init=False,
    )

    @contextmanager
    def watch(self, phase: str, passes: int | None = None) -> Iterator[None]:
        """Records calls in the first `passes` (or all) forward passes, unless the block raises."""
        names = {module: name for name, module in self.model.named_modules()}
        call_count = len(self._calls)
        open_calls: list[dict[str, Any]] = []
        times: Counter[str] = Counter()
        # Counting down from -1 never reaches 0.
        passes_left = count(-1 if passes is None else passes, -1)

        def enter(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not open_calls and next(passes_left) == 0:
                hooks.close()
                return
            name = names[module]
            kind = type(module)
            times[name] += 1
            leaves = tree_leaves([*inputs, *options.values()])
            figures, makers = self._look([leaf for leaf in leaves if isinstance(leaf, Tensor)])
            call = {
                "phase": phase,
                "module": name,
                "kind": kind.__name__,
                "library": kind.__module__.partition(".")[0],
                "call": times[name],
                "depth": len(open_calls),
                "source": next((maker for maker in makers if maker >= 0), -1),
                "taken": figures,
            }
            open_calls.append(call)

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            call = open_calls.pop()
            number = len(self._calls)
            tensors = [leaf for leaf in tree_leaves([output]) if isinstance(leaf, Tensor)]
            outputs = [tensor for tensor in tensors if tensor.is_floating_point()]
            call["given"], makers = self._look(outputs, number)
            call["maker"] = makers[0] if makers else -1

            def note_gradient(gradient: Tensor) -> None:
                call["gradient"] = tensor_figures(gradient.detach())

            if outputs and outputs[0].requires_grad and call["maker"] == number:
                outputs[0].register_hook(note_gradient)  # type: ignore[no-untyped-call]
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

    def _look(
        self,
        tensors: Sequence[Tensor],
        maker: int = -1,
    ) -> tuple[Projected | None, list[int]]:
        """The combined figures of tensors, and the number of the call that made each tensor.

        Both are cached until a tensor changes.
        """
        all_figures: list[Projected] = []
        makers: list[int] = []
        for tensor in tensors:
            version = 0 if tensor.is_inference() else tensor._version
            entry = self._seen.get(id(tensor))
            if entry is None or entry[0]() is not tensor or entry[1] != version:
                values = tensor.detach()
                # In inputs, whole numbers are replaced by their sines and mask values by their
                # signs, so that neither hides the rest.
                if maker < 0 and values.is_floating_point():
                    values = torch.where(values.abs() > LARGE, values.sign(), values)
                elif maker < 0:
                    values = torch.sin(values.float())
                figures = tensor_figures(values)
                entry = self._seen[id(tensor)] = (weakref.ref(tensor), version, figures, maker)
            all_figures.append(entry[2])
            makers.append(entry[3])
        return _sum(all_figures), makers

    def note_weights(self, phase: str, gradients: Mapping[str, Tensor]) -> None:
        """Adds combined figures of parameter gradients to module calls in `phase`.

        Each gradient counts in the first call of the module that owns its parameter, or of the
        nearest enclosing module that was called.
        """
        calls = [call for call in self._calls if call["phase"] == phase]
        first_calls = {call["module"]: call for call in reversed(calls)}
        figures: dict[str, list[Projected]] = defaultdict(list)
        for name, gradient in gradients.items():
            module = name.rpartition(".")[0]
            # This module is never called; it may be a list of parameters.
            while module and module not in first_calls:
                module = module.rpartition(".")[0]
            figures[module].append(tensor_figures(gradient))
        for module in figures.keys() & first_calls.keys():
            first_calls[module]["weights"] = _sum(figures[module])

    def columns(self) -> Columns:
        """The figures in columns, one row per call; missing and non-finite figures are None."""
        for call in self._calls:
            maker = call["maker"]
            call["gradient"] = self._calls[maker].get("gradient") if maker >= 0 else None
        columns: Columns = {name: [call[name] for call in self._calls] for name in NAME_COLUMNS}
        columns |= {name: [float(call[name]) for call in self._calls] for name in COUNT_COLUMNS}
        for name in TENSOR_COLUMNS:
            entries = [call.get(name) for call in self._calls]
            vectors = []
            for norm, projections in filter(None, entries):
                vectors.append(torch.cat([norm.unsqueeze(0), projections]))
            # One transfer to the host.
            rows = iter(torch.stack(vectors).tolist() if vectors else ())
            table = [next(rows) if entry else [math.nan] * len(NUMBERS) for entry in entries]
            for i, number in enumerate(NUMBERS):
                values = [row[i] for row in table]
                columns[f"{name}_{number}"] = [v if math.isfinite(v) else None for v in values]
        random_vectors.cache_clear()  # on a GPU they would count in the peaks of training
        return columns


def tensor_figures(tensor: Tensor) -> Projected:
    """A tensor's norm, and its projections on random vectors that depend only on its shape.

    Multiplies elementwise, because matrix multiplication itself may have changed between runs.
    """
    # Each random vector is the outer product of a vector along the last dimension and a vector
    # along all others, so none is as long as the tensor.
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
    """Random normals (PROJECTIONS, length), scaled to make projections about as large as norms."""
    numbers = torch.randn(PROJECTIONS, length, generator=torch.Generator().manual_seed(length))
    return (numbers / numbers.square().mean(1, keepdim=True).sqrt()).to(device)


def _sum(figures: Sequence[Projected]) -> Projected | None:
    """The norm of all tensors together, and a weighted sum of their projections; None if empty."""
    if len(figures) < 2:
        return figures[0] if figures else None
    norms = torch.stack([norm for norm, _ in figures])
    weighted = [projections * number for number, (_, projections) in enumerate(figures, 1)]
    return norms.norm(), torch.stack(weighted).sum(0)
