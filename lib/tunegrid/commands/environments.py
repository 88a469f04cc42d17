"""Environments beside this one, for `upgrade` and `bisect`, and runs of the suite in them.

An environment, which uv makes, holds the packages that were named and those that change with them. It takes everything else
from the environment that this process runs in. A lock pins each package to a commit or to hashes of archives, and names the
folder: a wheel that was built again under the same version gets another environment. Whatever was made is then compared with
what was named. `--resume` of pytest decides what a run need not measure again: its key contains the environment's path.
"""

import argparse
import ast
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from tunegrid import launcher
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.gate.judgements import COUNTED, FAILED_BY
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import PACKAGES, file_hash
from tunegrid.runs.resume_key import INSTALLED
from tunegrid.terminal import say
from tunegrid.words import some

ENVIRONMENTS = CACHE.absolute() / "environments"
LOCK = "used-by-another-command.lock"  # an error names this file if another command has it
DATES = ("GIT_AUTHOR_DATE=@0 +0000", "GIT_COMMITTER_DATE=@0 +0000")  # equal files make equal commits
REASON = re.compile(r"(?:error|fatal| +cause| +Caused by|  ╰─▶):? (?P<reason>.+)")  # of uv and git
INSTALLED_LINE = re.compile(r"^ \+ (?P<pin>.+)$", re.MULTILINE)  # of `uv pip install --dry-run`
COMMIT = re.compile(r"@([0-9a-f]{40})\b")  # in the address of a commit
# Settings of pip that uv does not read, but has as options of the same names; the first section counts.
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "constraint")
PIP_SECTIONS = (":env:", "install", "global")
UV_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
USAGE_ERROR = 4  # pytest's exit code


def suite(python: Path, out: Path, arguments: Sequence[str]) -> list[str]:
    """The command that runs cells with an environment's Python; `out` is the run's file, or JUnit's if it is XML."""
    report = "--junitxml" if out.suffix == ".xml" else "--benchmark-json"
    return command(["-q", *arguments, f"{report}={out}"], python)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of both commands."""
    parser.add_argument("--by", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"what counts: {','.join(COUNTED)}")
    parser.add_argument("--find-links", type=Path, metavar="DIR", help="take wheels from DIR, not from an index")


# What is to be installed


def parse_requirement(spec: str) -> str:
    """The requirement that "peft==0.22" or "peft@../peft", a checkout, stands for; raises InputError for an option or a path."""
    name, sign, place = (part.strip() for part in spec.partition("@"))
    try:
        Requirement(name if sign else spec)
    except InvalidRequirement:
        raise InputError(f"{spec!r} is no package: expected what pip takes, as in peft==0.22, or peft@../peft") from None
    return f"{name} @ {git_address(Path(place).expanduser())}" if sign and "://" not in place else spec


def git_address(checkout: Path, commit: str = "") -> str:
    """The address of a commit of a checkout; by default of what git tracks as it is on the disk, as a commit of no branch."""
    git, failure = ["env", *DATES, "git", "-C", str(checkout)], f"{checkout} cannot be read as a checkout of a library"
    commit = commit or "".join(read_output([*git, "stash", "create"], failure)) or "HEAD"
    [digits] = read_output([*git, "rev-parse", "--verify", f"{commit}^{{commit}}"], failure)
    return f"git+{checkout.resolve().as_uri()}@{digits}"


def index_options(wheels: Path | None) -> list[str]:
    """Options of uv for where packages come from: a folder of wheels, or else the places that pip or uv is configured for."""
    if wheels:
        return ["--no-index", f"--find-links={wheels.resolve()}"]
    if any(name in os.environ for name in UV_INDEXES):
        return []
    return pip_options()


@cache
def pip_options() -> list[str]:
    """Options of uv for the indexes of pip's configuration; none if pip is not installed here."""
    listing = [sys.executable, "-m", "pip", "config", "list"]
    answer = subprocess.run(listing, capture_output=True, text=True, check=False, encoding="utf-8")
    settings = dict(re.findall(r"^(\S+?)=(.+)$", answer.stdout, re.MULTILINE))
    options: list[str] = []
    for name in PIP_SETTINGS:
        values = [settings[f"{section}.{name}"] for section in PIP_SECTIONS if f"{section}.{name}" in settings]
        if values:
            options += [f"--{name}={value}" for value in str(ast.literal_eval(values[0])).split()]
    return [*options, "--index-strategy=unsafe-best-match"]  # as pip takes the newest release of all indexes


def lock_packages(requirements: Sequence[str], options: Sequence[str], *, alone: bool) -> str:
    """The lock of the packages that are named, and of others that have to change here with them, as `requirements.txt`.

    `alone` locks just those that are named, whatever they need.
    """
    failure = f"{' '.join(requirements)} cannot be installed"
    pins = list(requirements)
    if not alone:
        flags = ["--dry-run", "--break-system-packages", *options]
        for requirement in requirements:
            name = Requirement(requirement).name
            flags += [f"--upgrade-package={name}", f"--reinstall-package={name}"]
        report = run_uv(["pip", "install", *flags, *requirements], failure).stderr
        pins = INSTALLED_LINE.findall(report)
    flags = ["--quiet", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", *options]
    return run_uv(["pip", "compile", *flags, "-"], failure, text="\n".join(pins)).stdout


# What is installed


def find_packages(folders: Sequence[str]) -> dict[str, Distribution]:
    """The packages in folders by name; Python imports the first of a name."""
    packages: dict[str, Distribution] = {}
    for package in distributions(path=list(folders)):
        packages.setdefault(canonicalize_name(package.name), package)
    return packages


def direct_url(package: Distribution) -> dict[str, Any]:
    """The entries of `direct_url.json`: the commit, archive or folder of a package that did not come from an index."""
    source: dict[str, Any] = json.loads(package.read_text("direct_url.json") or "{}")
    return source


def describe(package: Distribution) -> str:
    """A package's version, and where it came from if not from an index, as in "0.21.2 at commit a8d99cf0"."""
    source = direct_url(package)
    if "vcs_info" in source:
        return f"{package.version} at commit {source['vcs_info']['commit_id'][:8]}"
    if source:
        return f"{package.version} from {source['url']}"
    return package.version


def recorded_hashes(package: Distribution) -> dict[str, str]:
    """The hash of each file of a package's archive by path; without scripts, which contain the path of a Python."""
    hashes = {}
    for path, digest, _ in csv.reader((package.read_text("RECORD") or "").splitlines()):
        is_metadata = Path(path).parent.name.endswith(".dist-info")
        if digest.startswith("sha256=") and not is_metadata and not path.startswith(".."):
            hashes[path] = digest
    return hashes


def changed_file(package: Distribution) -> str:
    """The first file of a package that is not as in its archive; empty if there is none."""
    for name, digest in recorded_hashes(package).items():
        path = Path(str(package.locate_file(name)))
        if not path.is_file() or file_hash(path) != digest:
            return name
    return ""


def is_same(package: Distribution, here: Distribution | None) -> bool:
    """Whether what is installed here is the same package: from the same place, and file by file."""
    if here is None or describe(package) != describe(here):
        return False
    hashes = recorded_hashes(package)
    return bool(hashes) and hashes == recorded_hashes(here) and not changed_file(here)


def differs(requirement: Requirement, package: Distribution) -> bool:
    """Whether a package has another version than a requirement, or comes from another place."""
    source = direct_url(package)
    is_version = requirement.specifier.contains(package.version, prereleases=True)
    if not is_version or bool(requirement.url) != bool(source):
        return True
    commit = COMMIT.search(requirement.url or "")
    return bool(commit) and commit[1] != source.get("vcs_info", {}).get("commit_id")


def check_packages(requirements: Sequence[str], lock: str, packages: Mapping[str, Distribution]) -> None:
    """Compare what an environment holds with what was named and with its lock; raises InputError if they differ."""
    lines = [line.removesuffix("\\").strip() for line in lock.splitlines() if not line.startswith(" ")]
    named = [text for text in requirements if not text.startswith("git+")]  # which the lock has with a name
    for requirement in map(Requirement, [*named, *lines]):
        package = packages.get(canonicalize_name(requirement.name))
        if package is None or differs(requirement, package):
            contents = f"{requirement.name} {describe(package)}" if package else f"no {requirement.name}"
            raise InputError(f"asked for {requirement}, but what was installed is {contents}")
    for name, package in packages.items():
        if file := changed_file(package):
            reason = f"{file} is not the file of {name} {package.version}: it was edited, there or in uv's cache"
            raise InputError(f"{reason}; `uv cache clean {name}` and the same command install it again")


# Environments


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python with its packages, and the folder where its runs are kept."""

    python: Path
    folder: Path
    own: Mapping[str, str] = field(default_factory=dict)  # packages it does not share, as `describe` has them
    is_copy: bool = False  # whether its own packages are those that are installed here

    @property
    def name(self) -> str:
        """For a sentence."""
        names = sorted(self.own, key=lambda name: name not in PACKAGES)
        return some([f"{name} {self.own[name]}" for name in names]) or "the libraries here"

    @property
    def command(self) -> list[str]:
        """The words of a command by which a user runs cells in this environment."""
        return [str(self.python), "-m", "tunegrid", "run"] if self.own else ["tunegrid", "run"]

    def run(self, file: str, arguments: Sequence[str]) -> Path:
        """The file of a run of cells; raises NoRun if pytest takes an argument for none, or leaves no file."""
        path = self.folder / file
        log, start = path.with_suffix(".txt"), time.monotonic()
        say(f"{self.name}: {path.stem}; progress is in {log}")
        # PYTHONPATH would come before the packages to try; PYTEST_* are those of a session around this one; the command that
        # asks writes the step's summary.
        unset = ("PYTHONPATH", "GITHUB_STEP_SUMMARY")
        variables = {name: text for name, text in os.environ.items() if name not in unset and not name.startswith("PYTEST_")}
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK, timeout=0), log.open("w", encoding="utf-8") as output:
            path.unlink(missing_ok=True)
            code = launcher.run(suite(self.python, path, arguments), environment=variables, output=output)
        if code == USAGE_ERROR or not path.is_file():
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
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


def get_environment(requirements: Sequence[str], wheels: Path | None, *, alone: bool = False) -> Environment:
    """The environment that holds what is named, made if it is not there yet; this one if nothing is named.

    `alone` as of `lock_packages`.

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
    place, requirements_txt, failure = folder / "environment", folder / "requirements.txt", f"cannot create {folder}"
    paths = sysconfig.get_paths("venv", {"base": str(place), "platbase": str(place)})
    python, link = Path(paths["scripts"], "python"), Path(paths["purelib"], "tunegrid-shared.pth")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK, timeout=0):
        if not link.is_file():  # it is written last
            shutil.rmtree(place, ignore_errors=True)
            run_uv(["venv", "--quiet", "--no-project", str(place)], failure)
            requirements_txt.write_text(lock, encoding="utf-8")
            # Copies, as an edit of a linked file would be one of uv's cache.
            flags = ["--quiet", "--no-deps", "--link-mode=copy", *options]
            run_uv(["pip", "install", *flags, f"--requirements={requirements_txt}"], failure, python=python)
        link.unlink(missing_ok=True)  # what differs is made again by the next command
        packages = find_packages(sorted({paths["purelib"], paths["platlib"]}))
        check_packages(requirements, lock, packages)
        # `addsitedir` reads editable installations, too; what it adds comes after the environment's own packages.
        folders = [path for path in sys.path if Path(path).name in INSTALLED]
        link.write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in folders), encoding="utf-8")
    here = find_packages(sys.path)
    is_copy = all(is_same(package, here.get(name)) for name, package in packages.items())
    own = {name: describe(package) for name, package in packages.items()}
    environment = Environment(python=python, folder=folder, own=own, is_copy=is_copy)
    say(f"{place} holds {environment.name}")
    return environment


# Commands


def run_uv(
    arguments: Sequence[str], failure: str, *, text: str = "", python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run uv for a Python's environment; raises InputError with its reason if it fails."""
    return run_command([find_uv_bin(), "--color=never", *arguments, f"--python={python}"], failure, text)


def read_output(command: Sequence[str], failure: str) -> list[str]:
    """The lines that a command prints; raises InputError with its reason if it fails."""
    return run_command(command, failure).stdout.splitlines()


def run_command(command: Sequence[str], failure: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command that reads a text; raises InputError if it fails.

    The reason is the last error or cause that uv or git names, or else the last line.
    """
    try:
        answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{failure}: {command[0]}: {error.strerror}") from None
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        reasons = [match["reason"] for line in lines if (match := REASON.fullmatch(line))]
        raise InputError(f"{failure}: {[f'exit code {answer.returncode}', *lines, *reasons][-1].strip()}")
    return answer
