"""Run the suite from any folder: `tunegrid run -m quick -n auto --gate=before.json`. All arguments are pytest's.

Paths are those of the folder that you are in, and `reports/` is written there. `tunegrid run --help` shows pytest's options.
"""

import os
import sys
from collections.abc import Sequence

from tunegrid import ROOT


def command(arguments: Sequence[str]) -> list[str]:
    """What is run: pytest, with the settings and the cases of this suite, whatever project the folder is of."""
    settings = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}"]
    return [sys.executable, "-P", "-m", "pytest", *settings, str(ROOT / "benchmarks"), *arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    """Become pytest; its exit code is this command's."""
    words = command(sys.argv[1:] if arguments is None else arguments)
    os.execv(words[0], words)
