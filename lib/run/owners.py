"""Whose code an object is. In: a function, class, descriptor or instance. Out: who wrote it, where no package did.

A function tells by the file that its code was compiled from, whatever name it has and whenever it was put in its place.
"""

import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "datasets")
ROOT = Path(__file__).parents[2]
OWN_ROOMS = tuple(f"{ROOT / room}{os.sep}" for room in ("lib", "fixtures"))
DATA = frozenset({NoneType, bool, int, float, str, bytes, tuple, list, dict, set, ModuleType, BuiltinFunctionType})
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who wrote a piece of code that no installed package holds.

    Attributes:
        by: its file and its name; of files that are not ours, without their folder.
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


def written_in(file: str, name: str) -> Owner:
    """The owner of a name in a file."""
    ours = file.startswith(OWN_ROOMS)
    return Owner(by=f"{Path(file).relative_to(ROOT) if ours else Path(file).name}: {name}", ours=ours)


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
    kind = type(value)
    if kind is FunctionType:
        yield _file_of(value), value.__qualname__
        if (wrapped := getattr(value, "__wrapped__", None)) is not None:
            yield from _parts(wrapped)
    elif inner := INNER.get(kind):
        for part in inner(value):
            yield from _parts(part)
    elif issubclass(kind, type):
        yield _file_of_class(value), value.__qualname__
    elif callable(value):
        yield _file_of_class(kind), kind.__qualname__


INNER: dict[type, Callable[[Any], tuple[Any, ...]]] = {
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
