"""tunegrid: did this fine-tune really work, and did it get worse? Asked as a test."""

import logging
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunegrid.commands.compare import compare as compare
    from tunegrid.commands.gate import gate as gate
    from tunegrid.commands.run import run as run

# The checkout, or what a wheel installs in the same form, fixtures and benchmarks included
ROOT = Path(__file__).parents[2]
WHEEL = ROOT.name == "tunegrid_suite"  # pyproject.toml names a wheel's folder
DEFAULT_CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tunegrid")
    if WHEEL
    else ROOT / ".cache"
)

# Libraries' load reports and progress bars say nothing that the record does not. Set before any
# process of ours imports them.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class CallablePackage(ModuleType):
    """A package with the name of a command: called, it does what the command does."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The function of `tunegrid.commands` with the package's name."""
        return _function(self.__name__.rpartition(".")[2])(*args, **options)


def _function(name: str) -> Any:
    return getattr(import_module(f"tunegrid.commands.{name}"), name)


def __getattr__(name: str) -> Any:
    """`run`, `gate` and `compare`, imported when they are first used."""
    if name in ("run", "gate"):
        return import_module(f"tunegrid.{name}")
    if name == "compare":
        return _function(name)
    raise AttributeError(f"module 'tunegrid' has no attribute {name!r}")
