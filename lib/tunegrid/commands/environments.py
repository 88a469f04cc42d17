"""Environments beside this one, for `upgrade` and `bisect`, and runs of the suite in them.

An environment holds a few packages alone and takes everything else from the environment that this process runs in. uv makes it
if it is on the PATH, else venv and pip. Its packages are resolved first, to a lock with the hash of each archive, and the lock
names the folder. So a wheel that was built again under the same version gets another environment, and runs of its own.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tunegrid import ROOT, launcher
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.recipes import CACHE, SCORED
from tunegrid.machine import PACKAGES, identity, library_digests, thread_share, versions
from tunegrid.results.judgements import COUNTED, FAILED_BY
from tunegrid.results.report import some
from tunegrid.results.resume_key import INSTALLED, code_digest, with_own_imports
from tunegrid.terminal import say

ENVIRONMENTS = CACHE.absolute() / "environments"
LOCK = "running.lock"  # in the folder of an environment that a command works in
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
ADDED = re.compile(r" \+ (?P<pin>\S+?)(?: @ (?P<url>\S+)| \(from (?P<origin>\S+)\))?")  # a package that uv would install
REASON = re.compile(r"(ERROR|error|fatal| +cause): (?P<reason>.+)")  # of pip, uv and git
USAGE_ERROR = 4  # pytest's exit code
STOCK = "stock"  # the profile of the libraries' own path, which leaves no rows but JUnit's results of tests
Command = Callable[[Path, Path], Sequence[str]]  # that runs cells, of an environment's Python and the file to write
Suite = Callable[[Sequence[str], Sequence[str], str], Command]  # makes it of cells, options of pytest and a profile
Whole = Callable[[Path], bool]  # whether a run's file has all that it should have


def suite(cells: Sequence[str], options: Sequence[str], profile: str = "quick") -> Command:
    """The suite itself: these cells of a profile, or all of them. The last of two equal options counts for pytest."""
    selection = ("-q", "-m", profile, *(["--cells", ",".join(cells)] if cells else []), *options)
    report = "--junitxml" if profile == STOCK else "--benchmark-json"
    return lambda python, out: [str(python), "-m", "pytest", *selection, f"{report}={out}"]


def first_updates(options: Sequence[str], profile: str = "quick") -> tuple[str, ...]:
    """The option by which cells stop after their first updates; none if these options choose cells that cannot."""
    chosen = dict(pairwise(options)).get("-m", profile)
    return ("--first-updates",) if chosen in SCORED else ()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of both commands."""
    parser.add_argument("--by", default=",".join(FAILED_BY), metavar="KIND,KIND", help=f"of {','.join(COUNTED)}: what counts")
    parser.add_argument("--find-links", type=Path, metavar="DIR", help="wheels to take, in place of an index")


def code_of(
    parser: argparse.ArgumentParser, command: Callable[[], int], stopped: str = "the same command goes on from what was kept"
) -> int:
    """The exit code of a command, which ends in one sentence if it cannot do what it was asked for."""
    try:
        return command()
    except Timeout as error:  # to wait for hours and say nothing helps nobody
        refuse(parser, f"another command works in {Path(error.lock_file).parent}: wait for its end")
    except OSError as error:
        refuse(parser, f"{error}; `rm -r {ENVIRONMENTS}` makes room" if error.errno == errno.ENOSPC else f"{error}")
    except InputError as error:
        refuse(parser, error)
    except KeyboardInterrupt:
        say(f"stopped; {stopped}")
        return 130


# What is to be installed


def requirement_of(spec: str) -> str:
    """What "peft==0.22" or "peft@../peft", a checkout, asks for, as pip takes it; raises InputError for an option or a path."""
    name, at, place = (part.strip() for part in spec.partition("@"))
    try:
        Requirement(name if at else spec)
    except InvalidRequirement:
        raise InputError(f"{spec!r} is no package: expected one as pip takes it, as in peft==0.22, or peft@../peft") from None
    return f"{name} @ {copy_of(Path(place).expanduser()).as_uri()}" if at and "://" not in place else spec


def copy_of(checkout: Path, commit: str = "") -> Path:
    """A copy of a commit, or of what git tracks as it lies on the disk, in a folder named by its content.

    A build writes into the folder that it is of. The copy has the history, too, by which some builds name their version.
    """
    git, failure = ["git", "-C", str(checkout)], f"{checkout} cannot be read as a checkout of a library"
    commit = commit or "".join(output_of([*git, "stash", "create"], failure)) or "HEAD"
    [tree] = output_of([*git, "rev-parse", f"{commit}^{{tree}}"], failure)
    copy = ENVIRONMENTS / f"source-{tree[:12]}" / checkout.resolve().name
    if not copy.is_dir():
        ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ENVIRONMENTS, prefix="clone-") as folder:
            clone = Path(folder) / copy.name
            output_of([*git, "clone", "--quiet", "--shared", "--no-checkout", ".", str(clone)], failure)
            output_of(["git", "-C", str(clone), "checkout", "--quiet", commit], failure)
            copy.parent.mkdir(exist_ok=True)
            clone.rename(copy)
    return copy


def lock_of(requirements: Sequence[str], places: Sequence[str], *, alone: bool) -> str:
    """What has to be installed here for requirements of packages to upgrade, as a lock file of uv or of pip.

    It may be empty. `alone` takes just these packages, whatever they need and whatever is installed here.
    """
    failure = f"{' '.join(requirements)} cannot be installed"
    if not (uv := shutil.which("uv")):
        which = ("--no-deps", "--ignore-installed") if alone else ("--upgrade",)
        report = output_of([*PIP, "install", "--dry-run", "--report", "-", *which, *places, "--", *requirements], failure)
        return "\n".join(map(pinned, json.loads("\n".join(report))["install"]))
    if not alone:
        # Its --upgrade is of all that is needed.
        upgrades = [f"--upgrade-package={Requirement(one).name}" for one in requirements]
        command = [uv, "pip", "install", "--dry-run", "--python", sys.executable, *upgrades, *places, "--", *requirements]
        added = [match for line in output_of(command, failure, errors_too=True) if (match := ADDED.fullmatch(line))]
        urls = [match["url"] or match["origin"] for match in added]
        pins = [match["pin"] for match in added]
        requirements = [f"{pin.partition('==')[0]} @ {url}" if url else pin for pin, url in zip(pins, urls, strict=True)]
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--format=pylock.toml", "--python", sys.executable]
    return "\n".join(output_of([*command, *places, "-"], failure, sent="\n".join(requirements))) if requirements else ""


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

    def run(self, command: Command, question: object, options: Sequence[str], file: str, whole: Whole) -> Path:
        """The file of a run, measured unless it was before; one that is not whole is measured again next time.

        Its key holds the question, the user's options of pytest with their files, libraries, code and machine. Raises NoRun if
        pytest takes an option for none, or leaves no file.
        """
        stage, suffix = Path(file).stem, Path(file).suffix
        own_files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files_in(options)]
        circumstances = [versions(), library_digests(), code_digest(), identity(thread_share(None))]
        path = self.folder / f"{stage}-{digest_of([question, list(options), own_files, circumstances])}{suffix}"
        if path.is_file():
            say(f"{self.name}: {stage}, measured before")
            return path
        log, part, start = path.with_suffix(".txt"), path.with_suffix(f".part{suffix}"), time.monotonic()
        say(f"{self.name}: {stage}; {log} says how far it is")
        # PYTHONPATH would come before the packages to try; PYTEST_* are those of a session around this one; the command that
        # asks writes the step's summary.
        unset = ("PYTHONPATH", "GITHUB_STEP_SUMMARY")
        variables = {name: text for name, text in os.environ.items() if name not in unset and not name.startswith("PYTEST_")}
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK, timeout=0), log.open("w", encoding="utf-8") as output:
            part.unlink(missing_ok=True)
            code = launcher.run(command(self.python, part), cwd=ROOT, environment=variables, output=output)
        if code == USAGE_ERROR or not part.is_file():
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            said = (lines or ["it said nothing"])[-1].removeprefix("ERROR: ")
            raise NoRun(f"no cell runs with {self.name}: {said} ({log})", self)
        say(f"{self.name}: {stage} took {time.monotonic() - start:.0f} s")
        return part.replace(path) if whole(part) else part


class NoRun(InputError):
    """A session ended without a run."""

    def __init__(self, reason: str, environment: Environment) -> None:
        """For a reason, in this environment."""
        super().__init__(reason)
        self.environment = environment


def files_in(options: Sequence[str]) -> list[Path]:
    """The user's files that options of pytest name, as --grid=FILE and -p PLUGIN, and what they import."""
    files = [ROOT / word.rpartition("=")[2] for word in options]
    for option, value in pairwise([*options, ""]):
        plugin = value if option == "-p" else option.removeprefix("-p") if option.startswith("-p") else ""
        with contextlib.suppress(ImportError, ValueError):
            spec = find_spec(plugin)
            files += [Path(spec.origin)] if spec and spec.origin else []
    own_files = (file for file in files if file.is_file() and not INSTALLED.intersection(file.parts))
    return [own for file in own_files for own in (with_own_imports(file) if file.suffix == ".py" else [file])]


def here() -> Environment:
    """The environment that this process runs in."""
    return Environment(python=Path(sys.executable), folder=ENVIRONMENTS / f"here-{digest_of([sys.prefix, sys.version])}")


def environment_with(requirements: Sequence[str], wheels: Path | None, *, alone: bool = False) -> Environment:
    """The environment that has what is required, made if it is not there yet; `alone` as of `lock_of`.

    Raises:
        InputError: if it cannot be made, of which nothing is left then, or would be empty.
    """
    if os.pathsep in str(ENVIRONMENTS):
        raise InputError(
            f"no environment can be in {ENVIRONMENTS}, for the {os.pathsep!r}: set TUNEGRID_CACHE to another folder"
        )
    places = ["--no-index", f"--find-links={wheels.resolve()}"] if wheels else []
    lock = lock_of(requirements, places, alone=alone)
    if not lock:
        raise InputError(f"nothing to upgrade: what is installed here is as {' '.join(requirements)} asks")
    name = re.match(r"[\w.-]*", requirements[0].rpartition("/")[2])
    folder = ENVIRONMENTS / f"{canonicalize_name(name[0] if name else '')}-{digest_of([lock, sys.prefix, sys.version])}"
    place, start = folder / "environment", time.monotonic()
    python, packages = _path_in(place, "scripts") / "python", _path_in(place, "purelib")
    link = packages / "tunegrid-shared.pth"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK, timeout=0):
        if not link.is_file():  # it is written last
            try:
                _install(lock, folder, place, python, places)
                # Only now, so that pip does not take a version that is already here for the one to install. `addsitedir` reads
                # editable installations, too; what it adds comes after the environment's own packages.
                shared = [path for path in sys.path if Path(path).name in INSTALLED]
                link.write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in shared), encoding="utf-8")
            except (OSError, InputError):
                shutil.rmtree(place, ignore_errors=True)  # half of one only takes room
                raise
            say(f"made {place} ({time.monotonic() - start:.0f} s)")
        else:
            say(f"uses {place}")
    found = distributions(path=sorted({str(packages), str(_path_in(place, "platlib"))}))
    return Environment(python=python, folder=folder, own={str(canonicalize_name(one.name)): one.version for one in found})


def _install(lock: str, folder: Path, place: Path, python: Path, places: Sequence[str]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    if uv := shutil.which("uv"):
        output_of([uv, "venv", "--quiet", "--python", sys.executable, str(place)], f"{place} cannot be made")
        file, installer = folder / "pylock.toml", [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        output_of([sys.executable, "-m", "venv", "--without-pip", str(place)], f"{place} cannot be made")
        file, installer = folder / "requirements.txt", [*PIP, "--python", str(python), "install", "--no-compile"]
    file.write_text(lock, encoding="utf-8")
    output_of([*installer, "--no-deps", *places, "-r", str(file)], f"{file} cannot be installed")


def _path_in(environment: Path, kind: str) -> Path:
    """Where an environment has its scripts or its packages, by sysconfig's name for them."""
    return Path(sysconfig.get_path(kind, "venv", {"base": str(environment), "platbase": str(environment)}))


def digest_of(facts: object) -> str:
    """Twelve hex digits over some facts."""
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]


def output_of(command: Sequence[str], failure: str, *, sent: str | None = None, errors_too: bool = False) -> list[str]:
    """The lines that a command prints, with those on stderr if asked; raises InputError with its reason if it fails."""
    try:
        answer = subprocess.run(command, input=sent, capture_output=True, text=True, check=False, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{failure}: {command[0]}: {error.strerror}") from None
    if answer.returncode:
        raise InputError(f"{failure}: {reason_in(answer.stderr) or f'exit code {answer.returncode}'}")
    return (answer.stdout + answer.stderr if errors_too else answer.stdout).splitlines()


def reason_in(errors: str) -> str:
    """Why pip, uv or git failed: the last error or cause that it names, or else its last line."""
    lines = errors.strip().splitlines()
    reasons = [match["reason"] for line in lines if (match := REASON.fullmatch(line))]
    return [*lines, *reasons][-1].strip() if lines else ""
