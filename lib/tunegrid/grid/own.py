"""Reads a user's file, as `--grid=FILE.py` names it: its function `pytest_tunegrid_grid(grid)` adds to the grid."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError, first_line
from tunegrid.grid.cells import Grid


def add_from(path: Path, grid: Grid) -> None:
    """Let a file add its entries; raises InputError, with the file's name, where it cannot be read or run."""
    module = user_module(path)
    try:
        module.pytest_tunegrid_grid(grid)
    except InputError as error:
        raise InputError(f"--grid {path}: {error}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the file raises is for its author to read; it may also end the program
        raise InputError(_complaint(path, error)) from None


def user_module(path: Path) -> Any:
    """A user's file as a module; raises InputError where it cannot be read or run."""
    name = f"tunegrid_grid_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"--grid {path} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as above
        raise InputError(_complaint(path, error)) from None
    if not hasattr(module, "pytest_tunegrid_grid"):
        raise InputError(f"--grid {path} has no function pytest_tunegrid_grid(grid), which adds to the grid")
    return module


def _complaint(path: Path, error: BaseException) -> str:
    """What a user's file raised, and in which line."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "lib":
        return f"--grid {path} imports from lib, which is the package tunegrid now: write `from tunegrid.` for `from lib.`"
    line = getattr(error, "lineno", None) or _line_in(path, error)
    location = f"{path}, line {line}" if line else str(path)
    return f"--grid {location}: {type(error).__name__}: {first_line(error)}"


def _line_in(path: Path, error: BaseException) -> int | None:
    """Where in a file an error came up."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
