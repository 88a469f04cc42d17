"""Run the suite from any folder: `tunegrid run -m quick -n auto --gate=before.json`.

All arguments go to pytest.

Paths are relative to the current folder. `reports/` is written there or, inside tunegrid's
checkout, at its root. `tunegrid run --help` shows the most important options. `tunegrid.run` does
the same from Python.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunegrid import ROOT
from tunegrid.grid.recipes import CACHE

if TYPE_CHECKING:
    from tunegrid.record import Record

HELP_OPTION = "--tunegrid-help"
# Selects this suite's settings and tests, whatever project the current folder belongs to
SUITE = (
    "-c",
    str(ROOT / "pyproject.toml"),
    f"--rootdir={ROOT}",
    f"-ocache_dir={CACHE / 'pytest'}",
    str(ROOT / "benchmarks"),
)
NOTHING_SELECTED = 5  # pytest's exit code


def command(arguments: Sequence[str], python: Path | str = sys.executable) -> list[str]:
    """The command line that runs pytest on the suite.

    `-P` keeps modules in the current folder from shadowing installed ones.
    """
    return [str(python), "-P", "-m", "pytest", *SUITE, *arguments]


def latest_run() -> Path:
    """The default run file: in the checkout or, outside it, in the current folder."""
    folder = ROOT if Path.cwd().is_relative_to(ROOT) else Path.cwd()
    return folder / "reports" / "latest.json"


def user_arguments(arguments: Sequence[object]) -> str:
    """Reconstruct, from pytest's arguments, the command line that the user typed."""
    words = [*map(str, arguments)]
    own = own_words(words)
    program = ["pytest"] if own == words else ["tunegrid", "run"]
    return shlex.join([*program, *own])


def own_words(words: list[str]) -> list[str]:
    """Pytest's arguments without those that `command` adds."""
    return words[len(SUITE) :] if tuple(words[: len(SUITE)]) == SUITE else words


def run(
    cells: str | Iterable[str] | None = None,
    *,
    seeds: int | str | Iterable[int] | None = None,
    grid: Path | str | Iterable[Path | str] = (),
    set: Mapping[str, object] | None = None,
    profile: str = "quick",
    to: Path | str | None = None,
    options: str | Sequence[str] = (),
) -> "list[Record]":
    """Run cells as `tunegrid run` does; return a record per cell and seed, including failed ones.

    Args:
        cells: ids of cells; None runs all cells of the profile.
        seeds: one seed, several, or a string such as "0-4"; None runs seed 0.
        grid: files that add to the grid.
        set: values for fields of every recipe, such as {"learning_rate": 1e-3}.
        profile: the profile to run, as given to `-m`.
        to: where to write the run; by default reports/latest.json.
        options: other options of `tunegrid run`, such as ("-n", "2"), or "-q" to print less.

    Raises:
        InputError: if the run wrote no file (usually with the run's own message), or if `set` is
            not a mapping.
    """
    from tunegrid import launcher
    from tunegrid.errors import InputError
    from tunegrid.runs.files import read_list

    path = Path(to or latest_run()).absolute()
    words = ["-m", profile, f"--benchmark-json={path}"]
    if cells is not None:
        words.append(f"--cells={_join(cells)}")
    if seeds is not None:
        words.append(f"--seeds={_join(seeds)}")
    files = [grid] if isinstance(grid, Path | str) else grid
    for file in files:
        words.append(f"--grid={file}")
    if isinstance(options, str):
        options = shlex.split(options)
    if not isinstance(set or {}, Mapping):
        raise InputError('`set` must be a mapping, such as set={"learning_rate": 1e-3}')
    for field, value in (set or {}).items():
        words.append(f"--set={field}={_join(value)}")
    before = _version(path)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        code = launcher.run(command([*words, *options]), errors=errors)
        errors.seek(0)
        text = errors.read().strip()
    if _version(path) != before:
        sys.stderr.write(text and f"{text}\n")
        return read_list(path)
    if code == NOTHING_SELECTED:
        raise InputError(f"no cell is selected by {shlex.join([*words, *options])}")
    if not text:
        raise InputError(f"the run wrote no {path} (exit code {code}); its output says why")
    raise InputError(text.splitlines()[-1].removeprefix("ERROR: "))


def _join(values: object) -> str:
    """Format one or more values for the command line."""
    if values is None:
        return "none"
    if isinstance(values, Iterable) and not isinstance(values, str):
        return ",".join(map(str, values))
    return str(values)


def _version(path: Path) -> tuple[int, int] | None:
    """A file's inode and modification time, which change when it is written; None if missing."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace this process with pytest, whose exit code becomes the command's."""
    options = sys.argv[1:] if arguments is None else arguments
    if "-h" in options or "--help" in options:
        options = [HELP_OPTION]
    words = command(options)
    os.execv(words[0], words)
