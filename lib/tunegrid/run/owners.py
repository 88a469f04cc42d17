"""Tells who wrote a function, class, descriptor or instance, and whether a package did.

A function tells by the file that its code was compiled from, whatever name it has and whenever it was put in its place.
"""

import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

from tunegrid import ROOT

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "datasets")
OWN_ROOMS = tuple(f"{ROOT / room}{os.sep}" for room in ("lib", "fixtures"))
DATA = frozenset({NoneType, bool, int, float, str, bytes, tuple, list, dict, set, ModuleType, BuiltinFunctionType})
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


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
