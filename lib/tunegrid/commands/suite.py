"""Runs the suite with the Python of another environment."""

import os
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.profiles import SCORED
from tunegrid.record import Record
from tunegrid.results.files import read_list

USAGE_ERROR = 4  # pytest's exit code
FIRST_UPDATES = ("--first-updates",)
# The command that runs the cells, of the Python of an environment and the file to write.
Command = Callable[[Path, Path], Sequence[str]]
# Makes it of cells, options of pytest and a profile.
Suite = Callable[[Sequence[str], Sequence[str], str], Command]


def suite(cells: Sequence[str], options: Sequence[str], profile: str = "quick") -> Command:
    """The suite itself: these cells of a profile, or all of them. The last of two equal options counts for pytest."""
    selection = ("-q", "-m", profile, *(["--cells", ",".join(cells)] if cells else []), *options)
    return lambda python, out: [str(python), "-m", "pytest", *selection, f"--benchmark-json={out}"]


def first_updates(options: Sequence[str], profile: str = "quick") -> tuple[str, ...]:
    """The option by which cells stop after their first updates; none where these options choose cells that cannot."""
    chosen = dict(pairwise(options)).get("-m", profile)
    return FIRST_UPDATES if chosen in SCORED else ()


def measure(command: Command, python: Path, path: Path, part: Path) -> list[Record]:
    """The records of a run that a command leaves at `part`; none where it leaves no file. What it says stands beside `path`.

    Raises:
        InputError: where pytest does not take an option.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    # PYTHONPATH would come before the packages to try; PYTEST_* are those of a session around this one; the command that asks
    # writes the step's summary.
    unset = ("PYTHONPATH", "GITHUB_STEP_SUMMARY")
    own = {name: text for name, text in os.environ.items() if name not in unset and not name.startswith("PYTEST_")}
    with output_of_run(path).open("w", encoding="utf-8") as file:
        done = subprocess.run(command(python, part), cwd=ROOT, env=own, stdout=file, stderr=file, check=False)
    if done.returncode == USAGE_ERROR:
        raise InputError(last_said(path))
    return read_list(part) if part.is_file() else []


def last_said(path: Path) -> str:
    """The last line of a session, without pytest's own word for an error, and where all of them stand."""
    lines = [line for line in output_of_run(path).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{(lines or ['it said nothing'])[-1].removeprefix('ERROR: ')} ({output_of_run(path)})"


def output_of_run(path: Path) -> Path:
    """Where a run's session says what it does."""
    return path.with_suffix(".txt")
