"""Checks whether the libraries stand as their packages define them: what replaces them, whose it is, and why.

Looked at are functions, methods, class attributes and registries of `LIBRARIES`, kernels that Python registered for torch's
operators, modes that torch runs under, and what a model's modules carry: attributes in a method's place, and hooks. What is
ours must be in `REASONS`; what is a user's or a package's is only shown. What changed while a cell ran, by nobody who can be
told, fails as what is ours does.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from tunegrid.codecs.architectures import OWN
from tunegrid.machine import keeps_freed_memory
from tunegrid.record.parts import ReplacedRecord
from tunegrid.run.namespaces import Namespaces, Snapshot
from tunegrid.run.owners import Owner, author_of, is_packaged, owner_of, written_in

UNKNOWN = "unknown"  # who changed what stood otherwise when the cell began
REASONS = {
    "lib/tunegrid/machine.py: keep_freed_memory": "glibc keeps freed memory, which the kernel would zero again in each update",
    "lib/tunegrid/run/build.py: keep_packed_layers": "bitsandbytes would round frozen biases and repack layers in mid-training",
    "lib/tunegrid/run/build.py: _inputs_in_fp32": "modules that train in fp32 take their inputs from a base in bf16",
    **{f"lib/tunegrid/codecs/architectures.py: {name}": "a model that transformers does not have" for name in OWN},
}
KERNEL = re.compile(r"^(\S+?)(?:\[alias\])?(?: \(inactive\))?: registered at (.+):\d+ ::", re.MULTILINE)
TORCHS = ("aten", "prims")  # namespaces of operators that torch itself defines
OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")
BY_LIBRARY = "/torch/library.py"  # where kernels are registered whose author torch does not note
Registrations = Counter[tuple[str, str, str]]  # times that a file registered a kernel: operator, dispatch key, file


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """Something that does not stand as a library's package defines it.

    Attributes:
        by: a file and a name in it; `UNKNOWN` for what changed while the cell ran, by code that is in no file.
        ours: whether this suite did it, or nobody is known to have done it.
    """

    what: str
    by: str
    ours: bool

    @property
    def reason(self) -> str | None:
        """Why it may stand there; None for a user's or a package's, and for what may not."""
        return REASONS.get(self.by) if self.ours else None

    @property
    def part(self) -> ReplacedRecord:
        """The record's."""
        return ReplacedRecord(what=self.what, by=self.by, reason=self.reason)


def _of(what: str, owner: Owner | None) -> Replaced:
    return Replaced(what=what, by=owner.by, ours=owner.ours) if owner else Replaced(what=what, by=UNKNOWN, ours=True)


class LibraryMonitor:
    """Watches the libraries of this process while its cells run."""

    def __init__(self) -> None:
        """Nothing was looked at, but for the kernels, which an earlier cell may have left behind."""
        self._namespaces, self._before = Namespaces(), Snapshot()
        self._at_start, self._operators = registrations(), frozenset(torch._C._dispatch_get_all_op_names())
        self._kernels: tuple[tuple[frozenset[str], int], list[Replaced]] = (frozenset(), 0), []

    def begin(self) -> None:
        """A cell begins: what changes from now on is found, whoever changes it."""
        self._before = self._namespaces.snapshot()

    def inside(self, model: nn.Module) -> list[Replaced]:
        """What stands in the libraries' place this moment, also inside of a forward pass."""
        return list(dict.fromkeys([*self._code(), *self._registered(), *modes(), *methods(model)]))

    def replaced(self, model: nn.Module) -> list[Replaced]:
        """The same, with the model's hooks and what the suite is known to do."""
        return list(dict.fromkeys([*self.inside(model), *hooks(model), *known(model)]))

    def _code(self) -> Iterator[Replaced]:
        for holder, now in self._namespaces.snapshot().items():
            yield from (_of(f"{now.name}.{key}", owner) for key, owner in now.unpackaged.items())
            before = self._before.get(holder, now)
            if before is not now:
                changed = [key for key in now.changed(before) if key not in {*now.unpackaged, *before.unpackaged}]
                yield from (_of(f"{now.name}.{key}", author_of(now.entries[key])) for key in changed)

    def _registered(self) -> list[Replaced]:
        """Kernels of no package; asked again when any was registered since, whose name may be an old one."""
        noted = frozenset(torch.library._impls), len(torch.library._keep_alive)
        if noted != self._kernels[0]:
            self._kernels = noted, list(kernels(self._at_start, self._operators))
        return self._kernels[1]


def registrations() -> Registrations:
    """The kernels of all operators for which Python registered any."""
    operators = {name.rpartition("/")[0].replace("/", "::", 1) for name in torch.library._impls}  # as "aten/mm/CPU"
    return Counter(
        (operator, key, file)
        for operator in sorted(operators)
        for key, file in KERNEL.findall(torch._C._dispatch_dump(operator))
    )


def kernels(at_start: Registrations, operators: frozenset[str]) -> Iterator[Replaced]:
    """Kernels of no package, given those that were registered, and the operators that there were, when the process began."""
    for kernel, times in registrations().items():
        operator, key, file = kernel
        if file.endswith(".py") and not is_packaged(file):
            yield _of(f"operator {operator} on {key}", written_in(file, operator.rpartition("::")[2]))
        elif file.endswith(BY_LIBRARY) and operator in operators and times > at_start[kernel]:
            yield _of(f"operator {operator} on {key}", None)
        elif file.endswith(BY_LIBRARY) and operator.startswith(TORCHS):
            yield Replaced(what=f"operator {operator} on {key}", by="torch.library", ours=False)


MONITOR = LibraryMonitor()


def modes() -> Iterator[Replaced]:
    """Modes through which torch's functions and operators pass."""
    functions = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    operators = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    for kind, stack in (("functions", functions), ("operators", operators)):
        yield from (_of(f"all {kind} of torch", owner) for mode in stack if (owner := owner_of(type(mode))) is not None)


def methods(model: nn.Module) -> Iterator[Replaced]:
    """Functions that modules carry themselves, as in the place of their class's."""
    for module in model.modules():
        for key, value in vars(module).items():
            if callable(value) and (owner := owner_of(value)) is not None:
                yield _of(f"{type(module).__name__}.{key} of the model", owner)


def hooks(model: nn.Module) -> Iterator[Replaced]:
    """Hooks of the model's modules and parameters, and of all modules; those of libraries aside."""
    holders = [("every module", vars(torch_module))]
    holders += [(f"{type(module).__name__} of the model", vars(module)) for module in model.modules()]
    holders += [("a parameter", {name: getattr(p, name) for name in OF_TENSORS}) for p in model.parameters()]
    for holder, attributes in holders:
        for kind, registered in attributes.items():
            if kind.endswith("hooks") and isinstance(registered, dict):
                owners = map(owner_of, registered.values())
                yield from (_of(f"hook of {holder}", owner) for owner in owners if owner is not None)


def known(model: nn.Module) -> Iterator[Replaced]:
    """What the suite itself changes without a function of its own in a library's place."""
    if keeps_freed_memory():
        yield Replaced(what="malloc of glibc", by="lib/tunegrid/machine.py: keep_freed_memory", ours=True)
    if any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules()):
        yield Replaced(what="Linear4bit of the model", by="lib/tunegrid/run/build.py: keep_packed_layers", ours=True)
    for kind in dict.fromkeys(map(type, model.modules())):
        if (owner := owner_of(kind)) is not None and owner.ours:
            yield _of(f"class {kind.__name__} of the model", owner)
