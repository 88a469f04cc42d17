"""Figures that tell a change without statistics: of groups ("layer 1 attention"), single modules, and the first updates.

They stand below the training loop, which takes those of its first updates, and `tunegrid.run.probe`, which takes those before.
"""

import math
import re
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tunegrid.grid.backbones import is_part
from tunegrid.grid.cells import Cell
from tunegrid.run.ranks import full_tensor

MOVED = 3  # updates that movement is measured over: a warm-up's first one has a rate of 0
SAMPLED = 4096  # values of a tensor that tell how far it moved
# Of the largest gradient of a group. Some gradients are zero by definition, as that of the bias of a span's head, and come out
# as what is rounded off, or as zero: below 1e-7 in the quick cells, where the smallest of all others is 1e-3.
ROUNDING = 1e-6
DIGITS = 9  # of a figure: more than fp32 has
KINDS = (  # a part of a parameter's name, and the kind of layer that it tells; the first that fits
    ("norm|\\.ln_", "norms"),
    ("relative_attention_bias", "biases of position"),
    ("crossattention|encdecattention", "cross-attention"),
    ("attention|attn", "attention"),
    ("embed|\\.wte|\\.wpe|shared\\.", "embeddings"),
    ("lm_head|\\.cls\\.", "output"),
)
WHOLE = ("norms", "biases of position", "embeddings", "output")  # one group for all layers
Figures = dict[str, float | None]  # by group; None for what is not finite


def names_by_group(cell: Cell, model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Names by group, in the order of the model: the head's, those that the method added, and those of each layer and kind."""
    method_names = cell.method.own_parameters(model)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        lower_name, layer = f".{name.lower()}", re.search(r"\.(\d+)\.", name)
        kind = next((kind for pattern, kind in KINDS if re.search(pattern, lower_name)), None)
        stack = next((stack for stack in ("decoder", "encoder") if f".{stack}." in lower_name), "layer")
        if is_part(name, cell.head.new_modules):
            group = "head"
        elif name in method_names:
            group = cell.method.group_name(name)
        elif kind in WHOLE or layer is None:
            group = kind or "rest"
        else:
            group = f"{stack} {layer[1]} {kind or 'MLP'}"
        groups[group].append(name)
    return dict(groups)


def norms(groups: Mapping[str, Sequence[str]], sizes: Mapping[str, float]) -> Figures:
    """The norm of each group, from those of its tensors; groups without one are left out."""
    sizes_by_group = {group: [sizes[name] for name in names if name in sizes] for group, names in groups.items()}
    return {group: figure(math.hypot(*tensor_norms)) for group, tensor_norms in sizes_by_group.items() if tensor_norms}


def gradient_figures(
    groups: Mapping[str, Sequence[str]], gradients: Mapping[str, Tensor]
) -> tuple[Figures, dict[str, int], set[str]]:
    """Norms by group, how many of a group's tensors have more than rounding, and the names of those that have only that."""
    # Counted, since one tensor of many without a gradient hardly moves a norm. If all of a group are zero, none is rounding.
    sizes = {name: float(gradient.norm(dtype=torch.float32)) for name, gradient in gradients.items()}
    largest = {name: max(sizes.get(other, 0.0) for other in names) for names in groups.values() for name in names}
    rounding = {name for name, size in sizes.items() if largest.get(name, 0.0) > 0 and size <= ROUNDING * largest[name]}
    reached_names = {name for name, gradient in gradients.items() if gradient.any()} - rounding
    return norms(groups, sizes), {group: len(reached_names & set(names)) for group, names in groups.items()}, rounding


def figure(value: Any) -> float | None:
    """A number for the record; None for one that is infinite or none."""
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def digest(value: Any) -> str:
    """Sixteen hex digits of a value; of an iterator, those of the list of its values, which is never made."""
    if not isinstance(value, Iterator):
        return sha256(repr(value).encode()).hexdigest()[:16]
    hasher = sha256(b"[")
    for index, item in enumerate(value):
        hasher.update(f"{', ' if index else ''}{item!r}".encode())
    hasher.update(b"]")
    return hasher.hexdigest()[:16]


def sample(tensors: Mapping[str, Any], *, exact: bool = False) -> dict[str, Tensor]:
    """Some values of each tensor, evenly spread: a copy of all would double what is kept. If exact, in fp64 on the host."""
    steps = {name: max(1, tensor.numel() // SAMPLED) for name, tensor in tensors.items()}
    values = {name: full_tensor(p.detach()).reshape(-1)[:: steps[name]].float().clone() for name, p in tensors.items()}
    return {name: some.double().cpu() for name, some in values.items()} if exact else values


@dataclass
class FirstUpdates:
    """Looks at a cell's parameters, by name, in the first update, and after the third, or the last of fewer."""

    cell: Cell
    model: nn.Module
    parameters: Mapping[str, Tensor]
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)
    _rounding: set[str] = field(default_factory=set, init=False)  # names of the tensors whose gradients are no more than that

    def gradients(self, device: torch.device) -> dict[str, Any]:
        """Norms by group of the gradients that the optimizer is about to use, and what was drawn so far."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self._start = sample({name: self.parameters[name] for name in gradients})
        groups = names_by_group(self.cell, self.model, gradients)
        full_gradients = {name: full_tensor(gradient) for name, gradient in gradients.items()}
        sizes, counts, self._rounding = gradient_figures(groups, full_gradients)
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()  # dropout draws from it
        return {"gradients": sizes, "reached": counts, "drawn": digest(state.tolist())}

    def movement(self) -> dict[str, Any]:
        """How far each group moved since: norms over sampled values. Empty if no one recorded the first update."""
        if not self._start:
            return {}
        end = sample({name: self.parameters[name] for name in self._start})
        # An AdamW moves a weight by its whole rate also if its gradient is rounding: such tensors are left out.
        change = {name: end[name] - start for name, start in self._start.items() if name not in self._rounding}
        sizes = {name: float(one.norm(dtype=torch.float32)) for name, one in change.items()}
        return {"moved": norms(names_by_group(self.cell, self.model, change), sizes)}


# AdamW by its definition

# Of the movement of three updates. On quick cells fp32 is at most 1e-5 off, and 8-bit moments 5e-2; Adam's moments without
# their correction are 3 off. One update from the moments that the optimizer holds is exact with 8 bits, too.
STEP_TOLERANCE, PACKED_TOLERANCE = 1e-3, 0.2
LOST = MOVED * torch.finfo(torch.float32).eps / STEP_TOLERANCE  # of the weights' norm: what so many additions may round off
LATE = 0.75  # of the updates come before the late one; behind it rates are so small that rounding hides much
PACKED_BLOCK = 256  # neighbouring values whose packed moments share a scale, as bitsandbytes has it


@dataclass
class AdamW:
    """AdamW by its definition (Loshchilov and Hutter 2019, algorithm 2), beside the first steps of an optimizer that is one.

    It is given the same gradients and rates, on some values of each tensor, and computes in fp64 on the host, since what
    tensors hold during an update is measured. `gap` stays None if the optimizer is no AdamW, made fewer steps, or was taken up
    in the middle. One late step starts from the optimizer's own weights and moments: its `late_gap` shows a count that is lost.
    """

    optimizer: Any
    parameters: Mapping[str, Tensor]  # by name
    gap: float | None = None  # how far they moved otherwise than by definition, as a share of the movement
    late_gap: float | None = None  # the same of one update near the end
    packed: bool = False  # whether the optimizer keeps moments in 8 bits
    _last: int = field(default=0, init=False)  # the update that ends what is followed
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)
    _groups: dict[str, Any] = field(default_factory=dict, init=False)
    _state: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False)  # weights and both moments

    def before_step(self, update: int, total: int) -> None:
        """Take the step by definition, of an update that counts from 0, of so many."""
        if update in (0, max(MOVED, int(LATE * total))):
            self._last = update or MOVED - 1
            kind, groups = type(self.optimizer), self.optimizer.param_groups
            is_torch = kind is torch.optim.AdamW and not any(group["amsgrad"] or group["maximize"] for group in groups)
            is_followed = is_torch or kind.__module__ == "bitsandbytes.optim.adamw"  # theirs have no such options
            group_of = {p: group for group in groups for p in group["params"]} if is_followed else {}
            stepped = {name: p for name, p in self.parameters.items() if p.grad is not None and p in group_of}
            stepped = {name: p for name, p in stepped.items() if not update or p in self.optimizer.state}
            for name, start in sample(stepped, exact=True).items():
                first, second = held_moments(self.optimizer.state[stepped[name]]) if update else [torch.zeros_like(start)] * 2
                self._start[name], self._groups[name] = start, group_of[stepped[name]]
                self._state[name] = start, first, second
        gradients = sample({name: self.parameters[name].grad for name in self._state}, exact=True)
        for name, gradient in gradients.items():
            self._state[name] = adamw_step(self._state[name], gradient, update + 1, self._groups[name])

    def after_step(self, update: int) -> None:
        """Behind the last step that is followed, see how far apart the two are."""
        if not self._state or update < self._last:
            return
        end = torch.cat([*sample({name: self.parameters[name] for name in self._start}, exact=True).values()])
        start, expected = torch.cat([*self._start.values()]), torch.cat([weights for weights, *_ in self._state.values()])
        gap = float((end - expected).norm() / ((expected - start).norm() + LOST * start.norm()))
        self.gap, self.late_gap = (gap, None) if update < MOVED else (self.gap, gap)
        states = (value for state in self.optimizer.state.values() for value in state.values())
        self.packed = any(isinstance(value, Tensor) and value.dtype is torch.uint8 for value in states)
        self._start, self._state = {}, {}


def held_moments(state: Mapping[str, Any]) -> Sequence[Tensor]:
    """Both moments, of the sampled values, that torch's or bitsandbytes' AdamW holds of a tensor."""
    names = ("exp_avg", "exp_avg_sq") if "exp_avg" in state else ("state1", "state2")
    moments = [*sample({name: state[name] for name in names}, exact=True).values()]
    if state[names[0]].dtype is not torch.uint8:
        return moments
    size = state["state1"].numel()
    blocks = torch.arange(0, size, max(1, size // SAMPLED)) // PACKED_BLOCK
    pairs = [(state[f"qmap{i}"].double().cpu(), state[f"absmax{i}"].double().cpu()) for i in (1, 2)]
    return [levels[codes.long()] * scales[blocks] for codes, (levels, scales) in zip(moments, pairs, strict=True)]


def adamw_step(
    state: tuple[Tensor, Tensor, Tensor], gradient: Tensor, number: int, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and both moments after a step, the first one of which is number 1; `settings` are an optimizer's group."""
    weights, first, second = state
    (beta1, beta2), rate, decay = settings["betas"], float(settings["lr"]), settings["weight_decay"]
    first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
    step = first / (1 - beta1**number) / ((second / (1 - beta2**number)).sqrt() + settings["eps"])
    return (1 - rate * decay) * weights - rate * step, first, second


# Single modules

# Of what goes into a module, of what comes out, and of the gradient there: a norm, and projections on fixed random vectors. A
# tensor whose values change places keeps its norm, and one of two tensors may have a projection of the other's by chance:
# hardly all of them.
LARGE = 1e6  # what masks hold is larger, and would hide all else that goes in
PROJECTIONS = 3
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
    """A tensor's norm, and its projections on random vectors that are the same for every tensor of its shape."""
    # Each is the product of one along the last dimension and one along all others: none is ever as long as the tensor.
    matrix = tensor.float().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    rows, columns = (random_vectors(length, matrix.device) for length in matrix.shape)
    with torch.autocast(matrix.device.type, enabled=False):  # which would round what is projected
        return torch.linalg.vector_norm(matrix), ((rows @ matrix) * columns).sum(1)


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
