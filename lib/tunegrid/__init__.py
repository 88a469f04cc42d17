"""tunegrid: tests whether a fine-tune really worked, and whether it got worse."""

import inspect
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunegrid.commands.compare import compare as compare
    from tunegrid.commands.gate import gate as gate
    from tunegrid.commands.run import run as run

# The checkout, or the folder where a wheel installs the same files, with fixtures and benchmarks
ROOT = Path(__file__).parents[2]
WHEEL = ROOT.name == "tunegrid_suite"  # pyproject.toml sets the name of a wheel's folder
DEFAULT_CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tunegrid")
    if WHEEL
    else ROOT / ".cache"
)


class CallablePackage(ModuleType):
    """A package named after a command; calling the package runs the command."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function of `tunegrid.commands` that has the package's name."""
        return self._function(*args, **options)

    @property
    def _function(self) -> Any:
        return _function(self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the package's function."""
        return inspect.signature(self._function)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """The signature and docstring of the package's function, for `help`."""
        return f"{self._function.__name__}{self.__signature__}\n\n{inspect.getdoc(self._function)}"


def _function(name: str) -> Any:
    return getattr(import_module(f"tunegrid.commands.{name}"), name)


def __getattr__(name: str) -> Any:
    """Import `run`, `gate` or `compare` on first use."""
    if name in ("run", "gate"):
        return import_module(f"tunegrid.{name}")
    if name == "compare":
        return _function(name)
    raise AttributeError(f"module 'tunegrid' has no attribute {name!r}")
