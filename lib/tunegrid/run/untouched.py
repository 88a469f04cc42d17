"""Checks whether the libraries stand as their packages define them: what replaces them, whose it is, and why.

Looked at are functions, methods, class attributes and registries of `LIBRARIES`, kernels that Python registered for torch's
operators, modes that torch runs under, and what a model's modules carry: attributes in a method's place, and hooks. What is
ours must be in `REASONS`; what is a user's or a package's is only shown. What changed while a cell ran, by nobody who can be
told, fails as what is ours does.
"""

import functools
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, ValuesView
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from operator import is_
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from tunegrid import ROOT
from tunegrid.codecs.architectures import OWN
from tunegrid.machine import keeps_freed_memory
from tunegrid.record.parts import ReplacedRecord

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "datasets")
OWN_ROOMS = tuple(f"{ROOT / room}{os.sep}" for room in ("lib", "fixtures"))
DATA = frozenset({NoneType, bool, int, float, str, bytes, tuple, list, dict, set, ModuleType, BuiltinFunctionType})
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
PLAIN = (int, float, str, bytes, type(None))  # of counters and flags
DULL = ("__builtins__", "__dict__", "__annotations__", "__annotate__", "__classcell__")
MOST_ENTRIES = 2000  # of a registry; larger ones hold data
_ABSENT = object()
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


# Whose code an object is


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who wrote a piece of code.

    Attributes:
        by: its file and its name; of files that are neither ours nor a package's, without their folder.
        ours: whether it is this suite's.
    """

    by: str
    ours: bool


def owner_of(value: Any) -> Owner | None:
    """Who wrote the first part of a value that no package holds; None where all parts are a package's, or plain data."""
    if type(value) in DATA:
        return None
    for file, name in _parts(value):
        if not is_packaged(file):
            return written_in(file, name)
    return None


def author_of(value: Any) -> Owner | None:
    """The same, or the package that holds all parts of a value; None for plain data, and for code that is in no file."""
    if (owner := owner_of(value)) is not None:
        return owner
    parts = list(_parts(value))
    return written_in(*parts[0]) if parts and all(_exists(Path(file)) for file, _ in parts) else None


def written_in(file: str, name: str) -> Owner:
    """The owner of a name in a file."""
    return Owner(by=f"{_short(file)}: {name}", ours=file.startswith(OWN_ROOMS))


def _short(file: str) -> str:
    if file.startswith(OWN_ROOMS):
        return str(Path(file).relative_to(ROOT))
    packages = next((part for part in PACKAGES if part in file), os.sep)
    return file.rpartition(packages)[2]


@functools.cache
def is_packaged(file: str) -> bool:
    """Whether a file is Python's or an installed package's. A file that is not there is: of generated or compiled code."""
    if file.startswith(OWN_ROOMS):
        return False
    return any(part in file for part in PACKAGES) or file.startswith(_homes()) or not _exists(Path(file))


def _exists(path: Path) -> bool:
    return path.is_absolute() and path.is_file()


@functools.cache
def _homes() -> tuple[str, ...]:
    """Folders of Python itself, and of the libraries, which may be installed from a checkout of their own."""
    homes = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    specs = [find_spec(name) for name in LIBRARIES]
    homes |= {str(Path(spec.origin).parent) for spec in specs if spec and spec.origin}
    return tuple(f"{home}{os.sep}" for home in homes)


def _parts(value: Any) -> Iterator[tuple[str, str]]:
    """File and name of each function or class that a value is made of."""
    waiting, seen = [value], set()
    for part in waiting:  # which grows meanwhile; a function may be in its own closure
        if id(part) in seen:
            continue
        seen.add(id(part))
        kind = type(part)
        if kind is FunctionType:
            yield _file_of(part), part.__qualname__
        if inner := INNER.get(kind):
            waiting += inner(part)
        elif issubclass(kind, type):
            yield _file_of_class(part), part.__qualname__
        elif callable(part):
            yield _file_of_class(kind), kind.__qualname__


def _in_function(function: FunctionType) -> Iterator[Any]:
    """What a function says that it wraps, and the functions in its closure."""
    yield getattr(function, "__wrapped__", None)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            if type(cell.cell_contents) in INNER:
                yield cell.cell_contents


INNER: dict[type, Callable[[Any], Iterable[Any]]] = {
    FunctionType: _in_function,
    staticmethod: lambda value: (value.__func__,),
    classmethod: lambda value: (value.__func__,),
    MethodType: lambda value: (value.__func__,),
    property: lambda value: (value.fget, value.fset, value.fdel),
    functools.cached_property: lambda value: (value.func,),
    functools.partial: lambda value: (value.func,),
    functools.partialmethod: lambda value: (value.func,),
    type(functools.cache(len)): lambda value: (value.__wrapped__,),
}


def _file_of(function: FunctionType) -> str:
    """The file that a function was compiled from, or whose globals it reads, if it was generated."""
    file = function.__code__.co_filename
    return str(function.__globals__.get("__file__", file)) if file.startswith("<") else file


def _file_of_class(kind: type) -> str:
    return _file_of_module(kind.__module__) if isinstance(kind.__module__, str) else ""


@functools.cache
def _file_of_module(name: str) -> str:
    return str(getattr(sys.modules.get(name), "__file__", None) or "")


# What the libraries' modules, classes and registries hold, now and before


@dataclass(frozen=True, eq=False, kw_only=True)
class Namespace:
    """One namespace as it was at one moment.

    Attributes:
        holder: the module, class or mapping; kept alive, so that its id stays its own.
        entries: what it held.
        unpackaged: who wrote those of its entries that no package holds.
        inner: the namespaces in it, as names and holders.
    """

    name: str
    holder: Any
    entries: dict[Any, Any]
    unpackaged: dict[str, Owner] = field(default_factory=dict)
    inner: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def stands(self) -> bool:
        """Whether its holder still has these very entries, in this order."""
        now = _values(self.holder)
        return len(now) == len(self.entries) and all(map(is_, now, self.entries.values()))

    def changed(self, before: "Namespace") -> list[str]:
        """Names of functions, classes and class attributes that were others before."""
        return [
            name
            for name, value in self.entries.items()
            if (old := before.entries.get(name, _ABSENT)) is not value and self._counts(old) and self._counts(value)
        ]

    def _counts(self, value: Any) -> bool:
        """Whether a value is a function, a class, or a class attribute; counters and flags are a library's own business."""
        if value is _ABSENT or isinstance(value, PLAIN):
            return False
        return callable(value) or isinstance(self.holder, type)


Snapshot = dict[int, Namespace]  # by the id of its holder


class Namespaces:
    """All namespaces of the libraries that are imported. A snapshot costs little where nothing changed since the one before."""

    def __init__(self) -> None:
        """No snapshot was taken yet."""
        self._known: Snapshot = {}

    def snapshot(self) -> Snapshot:
        """The namespaces as they are now."""
        seen: Snapshot = {}
        waiting = list(_modules())
        for name, holder in waiting:  # which grows meanwhile
            if id(holder) not in seen:
                seen[id(holder)] = now = self._now(name, holder)
                waiting += now.inner
        self._known = seen
        return seen

    def _now(self, name: str, holder: Any) -> Namespace:
        known = self._known.get(id(holder))
        if known is not None and known.stands:
            return known
        entries = _entries(holder)
        unpackaged = {key: owner for key, value in entries.items() if (owner := owner_of(value)) is not None}
        inner = [(f"{name}.{key}", one) for key, value in entries.items() if not _is_dull(key) for one in _inner(value)]
        name = f"{holder.__module__}.{holder.__qualname__}" if issubclass(type(holder), type) else name
        return Namespace(name=name, holder=holder, entries=entries, unpackaged=unpackaged, inner=inner)


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """The libraries' modules that are imported."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in LIBRARIES and isinstance(module, ModuleType):
            yield name, module


def _entries(holder: Any) -> dict[Any, Any]:
    """What a module, a class or a mapping holds."""
    # Some of transformers' mappings import all models when they themselves are asked what they hold.
    return dict(dict.items(holder) if isinstance(holder, dict) else vars(holder).items())


def _values(holder: Any) -> ValuesView[Any]:
    return dict.values(holder) if isinstance(holder, dict) else vars(holder).values()


def _inner(value: Any) -> Iterator[Any]:
    """The namespaces that an entry is, or keeps. Only its type is asked: some entries import modules when they are asked."""
    kind = type(value)
    if kind in DATA and kind is not dict:
        return
    if issubclass(kind, type):
        if _is_library(value):
            yield value
    elif issubclass(kind, dict):
        if _is_registry(value):
            yield value
    elif _is_library(kind) and issubclass(kind, MutableMapping):  # it keeps its names in a dict of its own
        yield from (kept for kept in vars(value).values() if type(kept) is dict and _is_registry(kept))


def _is_dull(key: Any) -> bool:
    """Whether a name says that nothing is to be looked for behind it; hooks are looked at by themselves."""
    return key in DULL or str(key).endswith("hooks")


def _is_library(kind: type) -> bool:
    return isinstance(kind.__module__, str) and kind.__module__.partition(".")[0] in LIBRARIES


def _is_registry(mapping: dict[Any, Any]) -> bool:
    """Whether a mapping gives names to functions or classes, or could."""
    count = dict.__len__(mapping)
    return count <= MOST_ENTRIES and (not count or any(map(callable, dict.values(mapping))))


# What stands in the libraries' place


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
