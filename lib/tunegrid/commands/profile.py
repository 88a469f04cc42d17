"""Where does the quick grid's time go? `tunegrid profile` runs it and prints seconds by stage.

With a FILE that `pytest --stage-times FILE` wrote, it prints that. Other work on the machine makes every stage longer.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.results.stages import table


def main(arguments: list[str] | None = None) -> int:
    """Run, or read, and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid profile", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="print this account and run nothing")
    parser.add_argument("-n", "--workers", default="0", metavar="N", help="processes (default 0: pytest's own)")
    parser.add_argument("--cells", metavar="ID,ID", help="these cells only")
    options = parser.parse_args(arguments)
    try:
        print(*table(_read(options.file) if options.file else _profiled(options.workers, options.cells)), sep="\n")
    except InputError as error:
        parser.error(str(error))
    return 0


def _profiled(workers: str, cells: str | None) -> dict[str, object]:
    """The account of a run of the quick grid, which prints what pytest prints."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "stages.json"
        command = [sys.executable, "-m", "pytest", "-m", "quick", "-q", "-n", workers, f"--stage-times={path}"]
        subprocess.run([*command, *([f"--cells={cells}"] if cells else [])], cwd=ROOT, check=False)
        return _read(path)


def _read(path: Path) -> dict[str, object]:
    try:
        data: dict[str, object] = json.loads(path.read_text())
    except (OSError, ValueError):
        raise InputError(f"{path} cannot be read as JSON; pytest --stage-times FILE writes it") from None
    return data
