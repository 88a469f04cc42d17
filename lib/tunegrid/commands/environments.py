"""Creates environments for `upgrade`, `history` and `bisect`, and runs the suite in them.

An environment holds the named packages and, except for `bisect`, the packages that must change with
them. Everything else is shared with the environment of this process. The folder's name contains a
hash of the lock, so a wheel that was rebuilt under the same version gets a new environment.

`--resume` reuses only results from the same environment, because the key of a result contains the
environment's path.
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
# The error shows this name if another command holds the lock
LOCK_FILE = "used-by-another-command.lock"
USAGE_ERROR = 4  # pytest's exit code


def suite(python: Path, out: Path, arguments: Sequence[str]) -> list[str]:
    """The command line that runs cells with an environment's Python.

    It writes a saved run to `out`, or a JUnit report if the name ends in .xml.
    """
    report = "--junitxml" if out.suffix == ".xml" else "--benchmark-json"
    return command(["-q", *arguments, f"{report}={out}"], python)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python with its own packages, and the folder for its runs."""

    python: Path
    folder: Path
    # Versions of the packages that are not shared with this process's environment
    own: Mapping[str, str] = field(default_factory=dict)
    is_copy: bool = False  # its own packages equal those installed here

    @property
    def name(self) -> str:
        """The names and versions of the environment's own packages, such as "peft 0.21.2"."""
        names = sorted(self.own, key=lambda name: name not in PACKAGES)
        return some([f"{name} {self.own[name]}" for name in names]) or "the libraries here"

    @property
    def command(self) -> list[str]:
        """The first words of a command that runs cells in this environment, from any folder."""
        if not self.own:
            return ["tunegrid", "run"]
        return [str(self.python), "-m", "tunegrid", "run"]

    def run(self, file: str, arguments: Sequence[str]) -> Path:
        """Run cells and return the path of the run or JUnit report.

        Raises NoRun if pytest rejects an argument or writes no file.
        """
        path = self.folder / file
        log, start = path.with_suffix(".txt"), time.monotonic()
        say(f"{self.name}: {path.stem}; progress is in {log}")
        # PYTHONPATH would take precedence over the packages under test. PYTEST_* variables belong
        # to a surrounding session. The calling command writes the step summary itself.
        unset = ("PYTHONPATH", "GITHUB_STEP_SUMMARY")
        variables = {
            name: text
            for name, text in os.environ.items()
            if name not in unset and not name.startswith("PYTEST_")
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(self.folder / LOCK_FILE, timeout=0),
            log.open("w", encoding="utf-8") as output,
        ):
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
    """Raised if a session in an environment writes no file."""

    def __init__(self, reason: str, environment: Environment) -> None:
        """Store the reason and the environment."""
        super().__init__(reason)
        self.environment = environment


def get_environment(
    requirements: Sequence[str], wheels: Path | None, *, alone: bool = False
) -> Environment:
    """Get the environment with the required packages; create it if necessary.

    Without requirements, it is the environment of this process. `wheels` is a folder to install
    from; `alone` leaves out the dependencies of the required packages.

    Raises:
        InputError: if the environment cannot be created, or does not contain what was required.
    """
    if not requirements:
        return Environment(python=Path(sys.executable), folder=ENVIRONMENTS / "here")
    options = index_options(wheels)
    lock = lock_packages(requirements, options, alone=alone)
    name = canonicalize_name(re.sub(r"[^\w.-].*", "", requirements[0].rpartition("/")[2]))
    digest = hashlib.sha256("\n".join([lock, sys.prefix, sys.version]).encode()).hexdigest()
    folder = ENVIRONMENTS / f"{name}-{digest[:12]}"
    environment_folder = folder / "environment"
    requirements_txt = folder / "requirements.txt"
    failure = f"cannot create {folder}"
    paths = sysconfig.get_paths(
        "venv", {"base": str(environment_folder), "platbase": str(environment_folder)}
    )
    python = Path(paths["scripts"], "python")
    link = Path(paths["purelib"], "tunegrid-shared.pth")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_FILE, timeout=0):
        # The link is written last, so a missing link means an unfinished environment.
        if not link.is_file():
            shutil.rmtree(environment_folder, ignore_errors=True)
            run_uv(["venv", "--quiet", "--no-project", str(environment_folder)], failure)
            requirements_txt.write_text(lock, encoding="utf-8")
            # Files are copied because editing a linked file would change uv's cache.
            flags = ["--quiet", "--no-deps", "--link-mode=copy", *options]
            run_uv(["pip", "install", *flags, "-r", str(requirements_txt)], failure, python=python)
        # if the check fails, the next command rebuilds the environment
        link.unlink(missing_ok=True)
        packages = find_packages(sorted({paths["purelib"], paths["platlib"]}))
        check_packages(requirements, lock, packages)
        # `addsitedir` also finds editable installations. Its paths come after the environment's
        # packages.
        folders = [path for path in sys.path if Path(path).name in INSTALLED]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in folders]
        link.write_text("".join(lines), encoding="utf-8")
    here = find_packages(sys.path)
    is_copy = all(is_same(package, here.get(name)) for name, package in packages.items())
    own = {name: installed_version(package) for name, package in packages.items()}
    environment = Environment(python=python, folder=folder, own=own, is_copy=is_copy)
    say(f"{environment_folder} holds {environment.name}")
    return environment
