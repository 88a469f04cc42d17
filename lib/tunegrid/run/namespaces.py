"""What the libraries' modules, classes and registries hold, now and before.

A namespace is a library's module, a class in it, or a mapping of names to functions or classes in either, as `ACT2FN` is.
"""

import sys
from collections.abc import Iterator, MutableMapping, ValuesView
from dataclasses import dataclass, field
from operator import is_
from types import ModuleType
from typing import Any

from tunegrid.run.owners import DATA, LIBRARIES, Owner, owner_of

PLAIN = (int, float, str, bytes, type(None))  # of counters and flags
DULL = ("__builtins__", "__dict__", "__annotations__", "__annotate__", "__classcell__")
MOST_ENTRIES = 2000  # of a registry; larger ones hold data
_ABSENT = object()


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
