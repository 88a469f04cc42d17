"""Environments beside this one, for `upgrade` and `bisect`, and runs of the suite in them.

An environment holds a few packages alone and takes everything else from the one that this process runs in. Its packages are
resolved first, to a lock with the hash of each archive, and the lock names the folder: a wheel that was built again under the
same version gets another environment. What a run need not measure again is for `--resume` of pytest to say, whose key holds the
place of the environment.
"""

import argparse
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
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tunegrid import launcher
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.gate.judgements import COUNTED, DEFAULT_KINDS
from tunegrid.grid.recipes import CACHE
from tunegrid.machine import PACKAGES
from tunegrid.runs.resume_key import INSTALLED
from tunegrid.terminal import say
from tunegrid.words import some

ENVIRONMENTS = CACHE.absolute() / "environments"
LOCK = "used-by-another-command.lock"  # in the folder of an environment; its name is in the sentence of who finds it locked
DATES = ("GIT_AUTHOR_DATE=@0 +0000", "GIT_COMMITTER_DATE=@0 +0000")  # a commit of the same files is the same commit
REASON = re.compile(r"(ERROR|error|fatal| +cause): (?P<reason>.+)")  # of pip and git
USAGE_ERROR = 4  # pytest's exit code


def suite(python: Path, out: Path, arguments: Sequence[str]) -> list[str]:
    """The command that runs cells with an environment's Python; `out` is the run's file, or JUnit's if it is XML."""
    report = "--junitxml" if out.suffix == ".xml" else "--benchmark-json"
    return command(["-q", *arguments, f"{report}={out}"], python)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of both commands."""
    parser.add_argument("--by", default=",".join(DEFAULT_KINDS), metavar="KIND,KIND", help=f"what counts: {','.join(COUNTED)}")
    parser.add_argument("--find-links", type=Path, metavar="DIR", help="take wheels from DIR, not from an index")


# What is to be installed


def parse_requirement(spec: str) -> str:
    """What "peft==0.22" or "peft@../peft", a checkout, asks for, as pip takes it; raises InputError for an option or a path."""
    name, sign, place = (part.strip() for part in spec.partition("@"))
    try:
        Requirement(name if sign else spec)
    except InvalidRequirement:
        raise InputError(f"{spec!r} is no package: expected what pip takes, as in peft==0.22, or peft@../peft") from None
    return f"{name} @ {pip_address(Path(place).expanduser())}" if sign and "://" not in place else spec


def pip_address(checkout: Path, commit: str = "") -> str:
    """Where pip finds a commit of a checkout, or what git tracks as it lies on the disk, as a commit of no branch."""
    git, failure = ["env", *DATES, "git", "-C", str(checkout)], f"{checkout} cannot be read as a checkout of a library"
    commit = commit or "".join(read_output([*git, "stash", "create"], failure)) or "HEAD"
    [digits] = read_output([*git, "rev-parse", "--verify", f"{commit}^{{commit}}"], failure)
    return f"git+{checkout.resolve().as_uri()}@{digits}"


def pip_command(python: Path | str) -> list[str]:
    """The command of pip for a Python's environment; uv brings it if none is installed here."""
    # Not importlib.util.find_spec: asked for pip, setuptools' hook takes distutils from setuptools in this process.
    pip = [sys.executable, "-m", "pip"] if PathFinder.find_spec("pip") else ["uv", "tool", "run", "pip"]
    return [*pip, "--disable-pip-version-check", "--python", str(python)]


def pip_lock(requirements: Sequence[str], places: Sequence[str], *, alone: bool) -> str:
    """What has to be installed here for requirements of packages to upgrade, each as its very archive or commit; may be empty.

    `alone` takes just these packages, whatever they need and whatever is installed here.
    """
    flags = ("--no-deps", "--ignore-installed") if alone else ("--upgrade",)
    command = [*pip_command(sys.executable), "install", "--quiet", "--dry-run", "--report", "-", *flags, *places]
    report = read_output([*command, "--", *requirements], f"{' '.join(requirements)} cannot be installed")
    return "\n".join(map(pinned, json.loads("\n".join(report))["install"]))


def pinned(item: Mapping[str, Any]) -> str:
    """An entry of pip's report as a requirement of this very archive or commit."""
    info = item["download_info"]
    commit, archive = info.get("vcs_info"), info.get("archive_info", {})
    url = f"{commit['vcs']}+{info['url']}@{commit['commit_id']}" if commit else info["url"]
    parts = [f"subdirectory={info['subdirectory']}"] if "subdirectory" in info else []
    parts += [f"{name}={digest}" for name, digest in archive.get("hashes", {}).items()]
    return f"{item['metadata']['name']} @ {url}" + (f"#{'&'.join(parts)}" if parts else "")


# Environments


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python with its packages, and the folder where its runs are kept."""

    python: Path
    folder: Path
    own: Mapping[str, str] = field(default_factory=dict)  # versions of the packages that are not shared with this environment

    @property
    def name(self) -> str:
        """For a sentence."""
        names = sorted(self.own, key=lambda name: name not in PACKAGES)
        return some([f"{name} {self.own[name]}" for name in names]) or "the libraries here"

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
    """The environment that has what is required, made if it is not there yet; this one if nothing is. `alone` as of `pip_lock`.

    Raises:
        InputError: if it cannot be made, or would be empty.
    """
    if not requirements:
        return Environment(python=Path(sys.executable), folder=ENVIRONMENTS / "here")
    places = ["--no-index", f"--find-links={wheels.resolve()}"] if wheels else []
    lock = pip_lock(requirements, places, alone=alone)
    if not lock:
        raise InputError(f"nothing to upgrade: {' '.join(requirements)} is installed here already")
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
            read_output([sys.executable, "-m", "venv", "--without-pip", str(place)], failure)
            requirements_txt.write_text(lock, encoding="utf-8")
            command = [*pip_command(python), "install", "--quiet", "--no-compile", "--no-deps", *places]
            read_output([*command, "-r", str(requirements_txt)], failure)
            # Only now, so that pip does not take a version that is already here for the one to install. `addsitedir` reads
            # editable installations, too; what it adds comes after the environment's own packages.
            folders = [path for path in sys.path if Path(path).name in INSTALLED]
            link.write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in folders), encoding="utf-8")
    say(f"{place} has {' '.join(requirements)}")
    packages = distributions(path=sorted({paths["purelib"], paths["platlib"]}))
    return Environment(python=python, folder=folder, own={str(canonicalize_name(one.name)): one.version for one in packages})


def read_output(command: Sequence[str], failure: str) -> list[str]:
    """The lines that a command prints; raises InputError with its reason if it fails.

    The reason is the last error or cause that pip or git names, or else the last line.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{failure}: {command[0]}: {error.strerror}") from None
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        reasons = [match["reason"] for line in lines if (match := REASON.fullmatch(line))]
        raise InputError(f"{failure}: {[f'exit code {answer.returncode}', *lines, *reasons][-1].strip()}")
    return answer.stdout.splitlines()
