"""Which files of the libraries does each quick cell run? Traces all of them and writes benchmarks/touched.json.

Each cell has a process and a cache of its own, so that none finds what another has computed: about 10 minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.lab.tracing import TO
from tunegrid.machine import versions
from tunegrid.results.touched import TRACED, Touched, write
from tunegrid.terminal import say


def traced(cell: str, folder: Path) -> list[str]:
    """The files that a cell runs; raises InputError where it does not pass."""
    out = folder / "files.txt"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "quick", "-n", "0", "--cells", cell, "-p", "tunegrid.lab.tracing"]
    own = os.environ | {TO: str(out), "TUNEGRID_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT / "lib")}
    command += [f"--benchmark-json={folder / 'run.json'}"]
    answer = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if answer.returncode:
        last = ["it said nothing", *answer.stderr.splitlines(), *answer.stdout.splitlines()][-1]
        raise InputError(f"{cell} does not pass under a trace: {last}")
    return out.read_text(encoding="utf-8").splitlines()


def main(arguments: list[str] | None = None) -> int:
    """Trace every cell and write the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab touched", description=__doc__)
    parser.add_argument(
        "--to", type=Path, default=TRACED, metavar="FILE.json", help="where to (default: benchmarks/touched.json)"
    )
    parser.add_argument("--cells", default=",".join(STUDY_IDS), metavar="ID,ID")
    options = parser.parse_args(arguments)
    cells, by_file = options.cells.split(","), dict[str, list[str]]()
    try:
        for number, cell in enumerate(cells, 1):
            with tempfile.TemporaryDirectory() as folder:
                files = traced(cell, Path(folder))
            say(f"{number} of {len(cells)}: {cell} runs {len(files)} files")
            for name in files:
                by_file.setdefault(name, []).append(cell)
    except InputError as error:
        refuse(parser, error)
    write(Touched(versions=versions(), cells=cells, by_file=by_file), options.to)
    say(f"wrote {options.to}: {len(by_file)} files")
    return 0
