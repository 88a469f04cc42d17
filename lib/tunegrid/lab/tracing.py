"""A plugin of pytest (`-p tunegrid.lab.tracing`) that notes which files of the libraries a session's tests run.

A file is noted when one of its functions is called while a test is set up, runs or is torn down. What a file does when it is
imported does not count: that depends on who imports it first. The file that $TUNEGRID_TRACED names gets one path per line, from
the library's folder on.
"""

import os
import sys
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType

from tunegrid.libraries import import_folder
from tunegrid.machine import PACKAGES

TO = "TUNEGRID_TRACED"
called: set[str] = set()


def note(frame: FrameType, event: str, argument: object) -> None:
    """Note whose function is called, and trace nothing inside it."""
    code = frame.f_code
    if (
        code.co_filename not in called and code.co_flags & CO_OPTIMIZED and not imports(frame)
    ):  # the body of a class has no such flag
        called.add(code.co_filename)


def imports(frame: FrameType | None) -> bool:
    """Whether a frame is called for an import."""
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def pytest_runtest_logstart() -> None:
    """Note what is called from now on, in threads, too."""
    threading.settrace(note)
    sys.settrace(note)


def pytest_runtest_logfinish() -> None:
    """Note no more."""
    sys.settrace(None)
    threading.settrace(None)


def pytest_unconfigure() -> None:
    """Write what was called."""
    folders = [str(folder.parent) + os.sep for package in PACKAGES if (folder := import_folder(package))]
    own = {Path(name).relative_to(folder).as_posix() for name in called for folder in folders if name.startswith(folder)}
    heads = {folder.name for package in PACKAGES if (folder := import_folder(package))}
    Path(os.environ[TO]).write_text(
        "".join(f"{name}\n" for name in sorted(own) if name.split("/")[0] in heads), encoding="utf-8"
    )
