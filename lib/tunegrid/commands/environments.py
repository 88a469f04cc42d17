"""Virtual environments for `bisect` and `upgrade`: for a version of a package, a commit of a checkout, or several packages.

An environment holds these packages alone. Everything else it takes from the environment that this process runs in. uv installs
them where it is on the PATH, and links files of its cache in place of copying them; else pip.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from packaging.version import InvalidVersion, Version

from tunegrid import ROOT, launcher
from tunegrid.errors import InputError
from tunegrid.grid.recipes import CACHE, SCORED
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
        code = launcher.run(command(python, part), cwd=ROOT, environment=own, output=file)
    if code == USAGE_ERROR:
        raise InputError(last_said(path))
    return read_list(part) if part.is_file() else []


def last_said(path: Path) -> str:
    """The last line of a session, without pytest's own word for an error, and where all of them stand."""
    lines = [line for line in output_of_run(path).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{(lines or ['it said nothing'])[-1].removeprefix('ERROR: ')} ({output_of_run(path)})"


def output_of_run(path: Path) -> Path:
    """Where a run's session says what it does."""
    return path.with_suffix(".txt")


# Nothing but the packages; their modules are compiled as they are imported, which is a part of them.
PIP_OPTIONS = ("--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check")
UV_OPTIONS = ("--quiet", "--no-deps")
REASON = re.compile(r"(ERROR|error|fatal| +cause): (?P<reason>.+)")  # of pip, uv and git
ENVIRONMENT = "environment"  # the folder of one, below that of its version
MAKES_ROOM = f"deleting {CACHE / 'upgrade'} and {CACHE / 'bisect'} makes room"


class Subject(Protocol):
    """What has versions.

    Attributes:
        name: what is bisected.
        options: of pip, as where it looks for wheels.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def options(self) -> Sequence[str]: ...  # noqa: D102

    def between(self, good: str, bad: str) -> list[str]:
        """Versions from the good one to the bad one, both included, in order; raises InputError where there are none."""

    def source(self, version: str) -> AbstractContextManager[Sequence[str]]:
        """What pip installs for a version."""


@dataclass(frozen=True, kw_only=True)
class Releases:
    """The releases of a package.

    Attributes:
        name: the package's.
        options: of pip, as where it looks for wheels.
        listed: releases to try; None asks pip which there are.
    """

    name: str
    options: Sequence[str] = ()
    listed: Sequence[str] | None = None

    def between(self, good: str, bad: str) -> list[str]:
        """Releases from the good one to the bad one, the older first; 5.20 is the index's 5.20.0."""
        listed = self._listed() if self.listed is None else self.listed
        try:
            spelled = {Version(text): text for text in (good, bad, *listed)}
            first, last = Version(good), Version(bad)
        except InvalidVersion as error:
            raise InputError(f"{error}; versions are those of `pip index versions {self.name}`") from None
        if first >= last:
            raise InputError(f"{self.name} {good} is not older than {bad}: give the older release as --good")
        return [spelled[version] for version in sorted(spelled) if first <= version <= last]

    def _listed(self) -> list[str]:
        command = [sys.executable, "-m", "pip", "index", "versions", self.name, *self.options]
        prefix = "Available versions:"
        lines = output_of(command, f"the releases of {self.name} cannot be listed (give them with --versions A,B,C)")
        return [text.strip() for line in lines if line.startswith(prefix) for text in line.removeprefix(prefix).split(",")]

    def source(self, version: str) -> AbstractContextManager[Sequence[str]]:
        """A requirement."""
        return contextlib.nullcontext([f"{self.name}=={version}"])


@dataclass(frozen=True, kw_only=True)
class Commits:
    """The commits of a local checkout, which is left as it is.

    Attributes:
        repo: the checkout.
        folder: where a copy of a commit may be while it is installed.
        options: of pip, as where it looks for what a build needs.
    """

    repo: Path
    folder: Path
    options: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The checkout's folder."""
        return str(self.repo.resolve())

    def between(self, good: str, bad: str) -> list[str]:
        """Commits from the good one to the bad one; what a merge brings in counts as one commit."""
        first, last = (self._git("rev-parse", "--short", f"{commit}^{{commit}}")[0] for commit in (good, bad))
        commits = self._git("rev-list", "--reverse", "--first-parent", "--abbrev-commit", f"{first}..{last}")
        if not commits or self._git("merge-base", first, last) != self._git("rev-parse", first):
            raise InputError(f"{good} is not an ancestor of {bad} in {self.repo}: give the older commit as --good")
        return [first, *commits]

    @contextlib.contextmanager
    def source(self, version: str) -> Iterator[Sequence[str]]:
        """A copy of the commit, with its history, by which some builds name their version."""
        copy = self.folder / "source"
        shutil.rmtree(copy, ignore_errors=True)
        self._git("clone", "--quiet", "--shared", "--no-checkout", ".", str(copy.resolve()))
        output_of(["git", "-C", str(copy), "checkout", "--quiet", version], f"{version} of {self.repo} cannot be read")
        yield [str(copy)]
        shutil.rmtree(copy)

    def _git(self, *arguments: str) -> list[str]:
        return output_of(["git", "-C", str(self.repo), *arguments], f"{self.repo} cannot be read")


def python_with(subject: Subject, version: str, folder: Path) -> Path:
    """A Python that has this version, installed where it is not yet; raises InputError where it cannot be."""
    return python_of(subject.source(version), folder, subject.options, f"{subject.name} {version}")


def python_of(
    sources: AbstractContextManager[Sequence[str]], folder: Path, options: Sequence[str] = (), what: str = "the upgrade"
) -> Path:
    """The Python of an environment with these packages, which is made where it is not there yet.

    Args:
        sources: what pip installs; entered only where the environment is made.
        folder: the environment's.
        options: of pip, as where it looks for wheels.
        what: is installed, for the sentence of an error.

    Raises:
        InputError: where they cannot be installed; the folder is gone then.
    """
    python, link = path_in(folder, "scripts") / "python", path_in(folder, "purelib") / "tunegrid-shared.pth"
    if link.is_file():  # it is written last
        return python
    try:
        # Without pip, which takes seconds to unpack: ours installs into it.
        venv.EnvBuilder(clear=True, symlinks=os.name != "nt").create(folder)
        with sources as given:
            output_of([*installer(python), *options, *given], f"{what} cannot be installed")
        # Only now, so that pip does not take a version that is already here for the one to install. `addsitedir` reads editable
        # installations, too; what it adds comes after the environment's own packages.
        shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in shared]
        link.write_text("".join(lines), encoding="utf-8")
    except (OSError, InputError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # half of one only takes room
        reason = f"{what} cannot be installed: {error.strerror} ({folder})" if isinstance(error, OSError) else str(error)
        raise InputError(reason + (f"; {MAKES_ROOM}" if os.strerror(errno.ENOSPC) in reason else "")) from None
    return python


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; raises InputError where another command has it: to wait for hours and say nothing helps nobody."""
    lock = FileLock(folder / "running.lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another command works in {folder}: wait for its end") from None
    try:
        yield
    finally:
        lock.release()


def path_in(folder: Path, name: str) -> Path:
    """Where an environment has its scripts or its packages, by sysconfig's name for them."""
    return Path(sysconfig.get_path(name, "venv", {"base": str(folder), "platbase": str(folder)}))


def installer(python: Path) -> list[str]:
    """The command that installs into the environment of a Python."""
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", *UV_OPTIONS, "--python", str(python)]
    return [sys.executable, "-m", "pip", "--python", str(python), "install", *PIP_OPTIONS]


def output_of(command: Sequence[str], failure: str, *, errors_too: bool = False) -> list[str]:
    """The lines that a command prints, with those on stderr if asked; raises InputError with its reason where it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{failure}: {command[0]}: {error.strerror}") from None
    if answer.returncode:
        raise InputError(f"{failure}: {reason_in(answer.stderr) or f'exit code {answer.returncode}'}")
    return (answer.stdout + answer.stderr if errors_too else answer.stdout).splitlines()


def reason_in(errors: str) -> str:
    """Why pip, uv or git failed: the last error or cause that it names, or else its last line."""
    lines = errors.strip().splitlines()
    named = [match["reason"] for line in lines if (match := REASON.fullmatch(line))]
    return [*lines, *named][-1].strip() if lines else ""
