"""Writes a file to start from: `tunegrid new task reviews` writes reviews.py, which runs at once,
without a network.

Its comments say what to change. A task comes with a folder of made-up rows; replace them with your
own. Existing files are never overwritten.
"""

import argparse
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import PathFinder
from keyword import iskeyword
from pathlib import Path

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.cells import NAME, study
from tunegrid.grid.metrics import OTHER_COLUMNS
from tunegrid.grid.tasks import score_names
from tunegrid.instruments import LISTED
from tunegrid.terminal import say

STARTERS = ROOT / "benchmarks" / "starters"
LONGEST_NAME = 100
FIRST_RUNS = {  # options for the first run
    "task": "--cells=bert_{}_lora",
    "method": "--cells=bert_sa_{}",
    "backbone": "--cells={}_sa_lora",
    "metric": "--cells=bert_sa_lora",
    "instrument": "--cells=bert_sa_lora --ask={}",
}


def check_name(kind: str, name: str) -> None:
    """Raises InputError if a name is invalid, would hide a module or is already in the grid."""
    if not NAME.fullmatch(name):
        expected = "lower-case letters and digits; underscores divide a cell's id"
        raise InputError(f"invalid NAME {name!r}: expected {expected}")
    if len(name) > LONGEST_NAME:
        raise InputError(f"NAME has {len(name)} letters; give one of at most {LONGEST_NAME}")
    if iskeyword(name) or name in sys.stdlib_module_names:
        fault = f"{name}.py would hide a module of Python's own, or {name} is a keyword"
        raise InputError(f"{fault}: give another NAME")
    folders = [
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        str(ROOT),
        str(ROOT / "lib"),
    ]
    if PathFinder.find_spec(name, folders):
        fault = f"{name}.py would hide the installed package {name}"
        raise InputError(f"{fault}: give another NAME")
    grid = study()
    names = {
        "metric": [*score_names(grid.tasks["sa"].problem, 2), *OTHER_COLUMNS],
        "instrument": LISTED,
    }
    if name in (names.get(kind) or getattr(grid, f"{kind}s")):
        raise InputError(f"{kind} {name!r} is in the grid already; give yours another NAME")


def write_starter(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the starter files and return their paths.

    Raises InputError if a path exists, is a link or cannot be written.
    """
    script = folder / f"{name}.py"
    sources = {script: STARTERS / f"{kind}.py"}
    targets = [script]
    if kind == "task":
        targets.append(folder / name)
        for rows in sorted(STARTERS.glob("rows/*.csv")):
            sources[folder / name / rows.name] = rows
    for path in targets:
        if path.is_symlink() or path.exists():
            raise InputError(f"{path} is there already; give another NAME or --to=DIR")
    for path, source in sources.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:  # mode "x" does not follow links
                file.write(source.read_text(encoding="utf-8").replace("NAME", name))
        except OSError as error:
            fault = f"{path} cannot be written ({error.strerror or error})"
            raise InputError(f"{fault}; give another place: --to=DIR") from None
    return [*sources]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and print the command for a first run; return the exit code.

    Raises InputError if the name cannot be used, or if a path exists or cannot be written.
    """
    parser = argparse.ArgumentParser(prog="tunegrid new", description=__doc__)
    add = parser.add_argument
    add("kind", choices=FIRST_RUNS)
    add("name", metavar="NAME", help="its id in the grid: lower-case letters and digits")
    add(
        "--to",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder to write to (default: here)",
    )
    options = parser.parse_args(arguments)
    check_name(options.kind, options.name)
    files = write_starter(options.kind, options.name, options.to)
    first_run = FIRST_RUNS[options.kind].format(options.name)
    say(f"wrote {', '.join(map(str, files))}\ntunegrid run -m quick --grid={files[0]} {first_run}")
    return 0
