"""Environments beside this one, for `upgrade`, `history` and `bisect`, and runs of the suite in
them.

An environment holds the packages that were named and those that change with them. It takes
everything else from the environment that this process runs in. A lock names its folder: a wheel
that was built again under the same version gets another environment.

`--resume` of pytest decides what a run need not measure again: its key has the environment's path.
"""

import hashlib
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from packaging.utils import canonicalize_name

from tunegrid import launcher
from tunegrid.commands.packages import (
    check_packages,
    find_packages,
    index_options,
    installed_version,
    is_same,
    lock_packages,
    run_uv,
)
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import PACKAGES
from tunegrid.runs.resume_key import INSTALLED
from tunegrid.terminal import say
from tunegrid.words import some

ENVIRONMENTS = CACHE.absolute() / "environments"
LOCK = "used-by-another-command.lock"  # an error names this file if another command has it
USAGE_ERROR = 4  # pytest's exit code


def suite(python: Path, out: Path, arguments: Sequence[str]) -> list[str]:
    """The command that runs cells with an environment's Python; `out` is the run's file, or JUnit's
    if it is XML.
    """
    report = "--junitxml" if out.suffix == ".xml" else "--benchmark-json"
    return command(["-q", *arguments, f"{report}={out}"], python)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python with its packages, and the folder where its runs are kept."""

    python: Path
    folder: Path
    # Versions of the packages that it does not share
    own: Mapping[str, str] = field(default_factory=dict)
    is_copy: bool = False  # its own packages are those installed here

    @property
    def name(self) -> str:
        """For a sentence."""
        names = sorted(self.own, key=lambda name: name not in PACKAGES)
        return some([f"{name} {self.own[name]}" for name in names]) or "the libraries here"

    @property
    def command(self) -> list[str]:
        """The words of a command that runs cells in this environment, from any folder."""
        if not self.own:
            return ["tunegrid", "run"]
        return [str(self.python), "-m", "tunegrid", "run"]

    def run(self, file: str, arguments: Sequence[str]) -> Path:
        """The file of a run of cells; raises NoRun if pytest takes an argument for none, or leaves
        no file.
        """
        path = self.folder / file
        log, start = path.with_suffix(".txt"), time.monotonic()
        say(f"{self.name}: {path.stem}; progress is in {log}")
        # PYTHONPATH would come before the packages to try; PYTEST_* are those of a session around
        # this one; the command that asks writes the step's summary.
        unset = ("PYTHONPATH", "GITHUB_STEP_SUMMARY")
        variables = {
            name: text
            for name, text in os.environ.items()
            if name not in unset and not name.startswith("PYTEST_")
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK, timeout=0), log.open("w", encoding="utf-8") as output:
            path.unlink(missing_ok=True)
            code = launcher.run(
                suite(self.python, path, arguments), environment=variables, output=output
            )
        if code == USAGE_ERROR or not path.is_file():
            lines = [
                line
                for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
                if line.strip()
            ]
            message = (lines or ["it said nothing"])[-1].removeprefix("ERROR: ")
            raise NoRun(f"no cell runs with {self.name}: {message} ({log})", self)
        say(f"{self.name}: {path.stem} took {time.monotonic() - start:.0f} s")
        return path


class NoRun(InputError):
    """A session ended without a run."""

    def __init__(self, reason: str, environment: Environment) -> None:
        """For a reason, in this environment."""
        super().__init__(reason)
        self.environment = environment


def get_environment(
    requirements: Sequence[str], wheels: Path | None, *, alone: bool = False
) -> Environment:
    """The environment that holds what is named, made if it is not there; this one if nothing is.

    `alone` leaves out what the named packages need.

    Raises:
        InputError: if it cannot be made, or holds something else.
    """
    if not requirements:
        return Environment(python=Path(sys.executable), folder=ENVIRONMENTS / "here")
    options = index_options(wheels)
    lock = lock_packages(requirements, options, alone=alone)
    name = canonicalize_name(re.sub(r"[^\w.-].*", "", requirements[0].rpartition("/")[2]))
    digest = hashlib.sha256("\n".join([lock, sys.prefix, sys.version]).encode()).hexdigest()
    folder = ENVIRONMENTS / f"{name}-{digest[:12]}"
    place = folder / "environment"
    requirements_txt = folder / "requirements.txt"
    failure = f"cannot create {folder}"
    paths = sysconfig.get_paths("venv", {"base": str(place), "platbase": str(place)})
    python = Path(paths["scripts"], "python")
    link = Path(paths["purelib"], "tunegrid-shared.pth")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK, timeout=0):
        # The link is written last.
        if not link.is_file():
            shutil.rmtree(place, ignore_errors=True)
            run_uv(["venv", "--quiet", "--no-project", str(place)], failure)
            requirements_txt.write_text(lock, encoding="utf-8")
            # Copies, as an edit of a linked file would be one of uv's cache.
            flags = ["--quiet", "--no-deps", "--link-mode=copy", *options]
            run_uv(["pip", "install", *flags, "-r", str(requirements_txt)], failure, python=python)
        link.unlink(missing_ok=True)  # so that the next command makes again what differs
        packages = find_packages(sorted({paths["purelib"], paths["platlib"]}))
        check_packages(requirements, lock, packages)
        # `addsitedir` reads editable installations, too. What it adds comes after the own packages.
        folders = [path for path in sys.path if Path(path).name in INSTALLED]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in folders]
        link.write_text("".join(lines), encoding="utf-8")
    here = find_packages(sys.path)
    is_copy = all(is_same(package, here.get(name)) for name, package in packages.items())
    own = {name: installed_version(package) for name, package in packages.items()}
    environment = Environment(python=python, folder=folder, own=own, is_copy=is_copy)
    say(f"{place} holds {environment.name}")
    return environment
