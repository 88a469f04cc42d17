"""Run the suite from any folder: `tunegrid run -m quick -n auto --gate=before.json`. All arguments are pytest's.

Paths are relative to the current folder, and `reports/` is written there. `tunegrid run --help` shows pytest's options.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tunegrid import ROOT
from tunegrid.grid.recipes import CACHE

# The settings and the cases of this suite, whatever project the folder is of.
SUITE = ("-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", f"-ocache_dir={CACHE / 'pytest'}", str(ROOT / "benchmarks"))


def command(arguments: Sequence[str], python: Path | str = sys.executable) -> list[str]:
    """What is run: pytest over the suite; no folder that a user is in hides its modules or Python's (`-P`)."""
    return [str(python), "-P", "-m", "pytest", *SUITE, *arguments]


def user_arguments(arguments: Sequence[object]) -> str:
    """What a user typed, of whom pytest got these arguments."""
    words = [*map(str, arguments)]
    own = own_words(words)
    program = ["pytest"] if own == words else ["tunegrid", "run"]
    return shlex.join([*program, *own])


def own_words(words: list[str]) -> list[str]:
    """The words without those that this command puts before a user's."""
    return words[len(SUITE) :] if tuple(words[: len(SUITE)]) == SUITE else words


def main(arguments: Sequence[str] | None = None) -> int:
    """Become pytest; its exit code is this command's."""
    words = command(sys.argv[1:] if arguments is None else arguments)
    os.execv(words[0], words)
