"""Run the suite from any folder: `tunegrid run -m quick -n auto --gate=before.json`. All arguments are pytest's.

Paths are relative to the current folder, and `reports/` is written there. `tunegrid run --help` shows the options that matter.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tunegrid import ROOT
from tunegrid.grid.recipes import CACHE

HELP_OPTION = "--tunegrid-help"
# The settings and the cases of this suite, whatever project the folder is of.
SUITE = ("-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", f"-ocache_dir={CACHE / 'pytest'}", str(ROOT / "benchmarks"))


def command(arguments: Sequence[str], python: Path | str = sys.executable) -> list[str]:
    """What is run: pytest over the suite; no folder that a user is in hides its modules or Python's (`-P`)."""
    return [str(python), "-P", "-m", "pytest", *SUITE, *arguments]


def user_arguments(arguments: Sequence[object]) -> str:
    """What a user typed, of whom pytest got these arguments."""
    words = [*map(str, arguments)]
    is_suite = tuple(words[: len(SUITE)]) == SUITE
    return shlex.join(["tunegrid", "run", *words[len(SUITE) :]] if is_suite else ["pytest", *words])


def main(arguments: Sequence[str] | None = None) -> int:
    """Become pytest; its exit code is this command's."""
    options = sys.argv[1:] if arguments is None else arguments
    if "-h" in options or "--help" in options:
        options = [HELP_OPTION]
    words = command(options)
    os.execv(words[0], words)
