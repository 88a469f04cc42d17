"""Sets the libraries' own switches for a process of the suite, and lists what `kernels` loaded.

The package `kernels` loads compiled code from the hub. transformers asks it for layers of a model
and bitsandbytes for 4-bit layers on a CPU, both without being asked. The suite forbids it, unless
the user sets `USE_HUB_KERNELS=1`, because such code changes without a new version of a library.
"""

import hashlib
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SWITCH = "USE_HUB_KERNELS"  # transformers' own
ALLOWED = ("1", "true", "yes", "y", "on")  # as transformers reads the switch
# bitsandbytes has no switch, so `kernels` is told that its repositories are in a folder that does
# not exist. bitsandbytes then computes with its own code. Before 0.50, the second name was used.
BITSANDBYTES_KERNELS = (
    "kernels-community/quantization-bitsandbytes",
    "kernels-community/quantization_bitsandbytes",
)
# Matches a file of code in the hub's cache.
CACHED = re.compile(
    r"(?P<folder>.*(?:kernels|models)--(.+?)--(.+?)[/\\]snapshots[/\\]([0-9a-f]{40}))[/\\]"
)


@dataclass(frozen=True)
class LoadedKernel:
    """Compiled code that `kernels` loaded into this process."""

    commit: str | None  # in the repository; None if the user gave a folder
    digest: str  # of the files: sixteen hex digits


def prepare_libraries() -> None:
    """Sets the libraries' switches for this process and its children.

    Must be called before the process imports transformers, datasets or bitsandbytes.
    """
    # The libraries' load reports and progress bars add nothing to the record.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if kernels_allowed():
        return
    os.environ[SWITCH] = "0"
    folders = [*filter(None, os.environ.get("LOCAL_KERNELS", "").split(":"))]
    named = {folder.partition("=")[0] for folder in folders}
    folders += [f"{name}={os.devnull}" for name in BITSANDBYTES_KERNELS if name not in named]
    os.environ["LOCAL_KERNELS"] = ":".join(folders)


def kernels_allowed() -> bool:
    """Checks whether the user allows compiled code from the hub."""
    return os.environ.get(SWITCH, "").lower() in ALLOWED


def loaded_kernels() -> dict[str, LoadedKernel]:
    """What `kernels` loaded into this process, by repository; for a user's folder, by its name."""
    folders: dict[str, tuple[str | None, Path]] = {}
    for module in [*sys.modules.values()]:
        match = CACHED.match(getattr(module, "__file__", None) or "")
        if match:
            folder, owner, name, commit = match.groups()
            folders[f"{owner}/{name}"] = (commit, Path(folder))
    # Only since 0.14 does `kernels` list what it loaded; since 0.13 it takes a user's folders.
    listing: Any = getattr(sys.modules.get("kernels"), "get_loaded_kernels", list)
    for kernel in listing():
        if kernel.repo_info is None:
            folders[kernel.metadata.name] = (None, Path(kernel.module.__file__).parent)
    return {
        name: LoadedKernel(commit, _digest(folder)) for name, (commit, folder) in folders.items()
    }


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(str(file.relative_to(folder)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
