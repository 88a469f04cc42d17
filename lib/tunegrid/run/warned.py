"""Counts the warnings that libraries give while a cell runs; one of the suite's own code is an error, as in any test."""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from tunegrid import ROOT
from tunegrid.record.parts import WarningRecord

OWN_FOLDERS = tuple(ROOT / name for name in ("lib", "fixtures", "benchmarks"))
HARNESS = ("_pytest", "pytest", "pytest_benchmark")  # their warnings are of how a test is written
FUTURE = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
LONGEST = 200  # characters of a message that are kept
FOLDERS = re.compile(r"(?<![\w/])/(?:[^\s/:'\"]+/)+")  # a path's, which may name a user
ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
Warned = tuple[str, str, str]  # library, category and message


class LibraryWarnings:
    """The warnings of one cell so far."""

    def __init__(self, own_files: Collection[Path] = ()) -> None:
        """None yet; `own_files` are a user's, whose warnings are errors, too."""
        self._own_files = frozenset(own_files)
        self._counts: Counter[Warned] = Counter()

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Inside, a warning of a library is counted where every warning is an error; all other filters hold."""
        with warnings.catch_warnings():
            _pass_errors_on()
            warnings.showwarning = self._note
            yield

    def _note(self, message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
        issuer = _issuer(sys._getframe(1))
        if self._is_own(issuer, category):
            raise message if isinstance(message, Warning) else category(message)
        self._counts[_library(issuer), category.__name__, shown(str(message))] += 1

    def _is_own(self, issuer: FrameType, category: type[Warning]) -> bool:
        """Whether our code warns. Where compiled code warns, the frame is its caller's: what it calls deprecated is its own."""
        path = Path(issuer.f_code.co_filename)
        ours = path in self._own_files or any(map(path.is_relative_to, OWN_FOLDERS))
        return (ours and not issubclass(category, FUTURE)) or _package(issuer) in HARNESS

    @property
    def part(self) -> list[WarningRecord]:
        """The record's, by name."""
        return [
            WarningRecord(library=library, category=category, message=message, count=count)
            for (library, category, message), count in sorted(self._counts.items())
        ]


def _pass_errors_on() -> None:
    """Let what every warning is, an error, come to `showwarning`; a filter for one kind of warning stays as it is."""
    filters, add = list(warnings.filters), cast(Any, warnings.filterwarnings)
    warnings.resetwarnings()
    for action, message, category, module, line in filters:
        is_blanket = action == "error" and category is Warning and not (message or module or line)
        text, name = (getattr(pattern, "pattern", pattern) or "" for pattern in (message, module))
        add("always" if is_blanket else action, text, category, name, line, append=True)


def _issuer(frame: FrameType) -> FrameType:
    """The frame that warns: the first one outside the module `warnings`."""
    while frame.f_globals.get("__name__") == "warnings" and frame.f_back:
        frame = frame.f_back
    return frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _library(frame: FrameType) -> str:
    """The package that warns; compiled code does not say which it is."""
    own = any(map(Path(frame.f_code.co_filename).is_relative_to, OWN_FOLDERS))
    return "compiled code" if own else _package(frame)


def shown(message: str) -> str:
    """A message as a record keeps it: one line without the folders of a path and without addresses."""
    return ADDRESS.sub("0x", FOLDERS.sub("", " ".join(message.split())))[:LONGEST]
