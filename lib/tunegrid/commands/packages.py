"""Packages for `upgrade` and `bisect`: what a user names, its lock, and what was then installed.

uv finds and installs them. A lock pins each package to a commit or to hashes of archives.
"""

import ast
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version
from uv import find_uv_bin

from tunegrid.errors import InputError
from tunegrid.machine import file_hash

# Equal files make equal commits
DATES = ("GIT_AUTHOR_DATE=@0 +0000", "GIT_COMMITTER_DATE=@0 +0000")
# Of uv, git and, in a build that uv runs, Python.
REASON = re.compile(r"(?m)^ *(?:(?:error|fatal|cause|Caused by):|╰─▶|(?=\w+Error:)) ?(.+)$")
CHANGE = re.compile(r"(?m)^ \+ (.+)$")  # of `uv pip install --dry-run`
# uv does not read pip's settings, but has options of the same names. The first section counts.
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "constraint")
PIP_SECTIONS = (":env:", "install", "global")
UV_INDEXES = {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}
PIN = re.compile(r"(?m)^(\S.*?)(?: --hash=.+| \\)*$")  # in a lock, without hashes
ADDRESS_COMMIT = re.compile(r"@([0-9a-f]{40})\b")  # in the address of a commit


# What is to be installed


def parse_requirement(spec: str) -> str:
    """The requirement that a user named, as "peft==0.22" or as "peft@../peft", a checkout.

    Raises:
        InputError: for anything else, as an option or a path.
    """
    name, sign, place = (part.strip() for part in spec.partition("@"))
    try:
        Requirement(name if sign else spec)
    except InvalidRequirement:
        raise InputError(
            f"{spec!r} is no package: expected what pip takes, as in peft==0.22, or peft@../peft"
        ) from None
    return (
        f"{name} @ {git_address(Path(place).expanduser())}" if sign and "://" not in place else spec
    )


def git_address(checkout: Path, commit: str = "") -> str:
    """The address of a commit of a checkout; by default of its files as they are on the disk.

    Those are a commit of no branch, of the files that git tracks.
    """
    git = ["env", *DATES, "git", "-C", str(checkout)]
    failure = f"{checkout} cannot be read as a checkout of a library"
    commit = commit or "".join(read_output([*git, "stash", "create"], failure)) or "HEAD"
    [digits] = read_output([*git, "rev-parse", "--verify", f"{commit}^{{commit}}"], failure)
    return f"git+{checkout.resolve().as_uri()}@{digits}"


def index_options(wheels: Path | None) -> list[str]:
    """Options of uv for where packages come from: a folder of wheels, or what pip is configured
    for.

    An index that uv is configured for by a variable counts instead.
    """
    if wheels:
        return ["--no-index", f"--find-links={wheels.resolve()}"]
    if UV_INDEXES & os.environ.keys():
        return []
    command = [sys.executable, "-m", "pip", "config", "list"]  # fails if pip is not installed
    listing = subprocess.run(command, capture_output=True, check=False, encoding="utf-8").stdout
    settings = dict(re.findall(r"^(\S+?)=(.+)$", listing, re.MULTILINE))
    options = ["--index-strategy=unsafe-best-match"]  # pip takes the newest release of all indexes
    for name in PIP_SETTINGS:
        keys = [f"{section}.{name}" for section in PIP_SECTIONS]
        value = next((settings[key] for key in keys if key in settings), "''")
        options += [f"--{name}={word}" for word in str(ast.literal_eval(value)).split()]
    return options


def lock_packages(requirements: Sequence[str], options: Sequence[str], *, alone: bool) -> str:
    """The lock of packages that are named and of others that have to change here with them.

    It is the text of a `requirements.txt`. `alone` locks those that are named, whatever they need.
    """
    failure = f"{' '.join(requirements)} cannot be installed"
    pins = list(requirements)
    if not alone:
        named = {str(canonicalize_name(Requirement(text).name)): text for text in requirements}
        flags = ["--dry-run", "--break-system-packages", *options]
        for name in named:
            flags += [f"--upgrade-package={name}", f"--reinstall-package={name}"]
        report = run_uv(["pip", "install", *flags, *requirements], failure).stderr
        pins = []
        for pin in CHANGE.findall(report):
            name, _, address = pin.partition(" @ ")
            # The report hides the password of an address.
            pins.append(named.get(name, pin) if address else pin)
    flags = ["--quiet", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", *options]
    lock = run_uv(["pip", "compile", *flags, "-"], failure, text="\n".join(pins)).stdout
    for option in options:
        name, _, folder = option.partition("=")
        if name == "--find-links":
            lock = add_hashes(lock, Path(folder))
    return lock


def list_releases(
    package: str, first: Version, last: Version | None, wheels: Path | None
) -> list[str]:
    """The releases that can be installed, from the last one (None: the newest) to the first.

    uv has no command that lists them, but finds the newest one below another.

    Raises:
        InputError: if it does not find the first.
    """
    failure = f"the releases of {package} cannot be listed (give them with --versions A,B,C)"
    flags = ["--quiet", "--no-deps", "--no-header", "--no-annotate"]
    arguments = ["pip", "compile", *flags, *index_options(wheels), "-"]
    texts = []
    limit = f"<={last}" if last else ""
    while True:
        wanted = f"{package}>={first},{limit}".rstrip(",")
        pin = run_uv(arguments, failure, text=wanted).stdout
        texts.append(pin.partition("==")[2].strip())
        version = Version(texts[-1]).public
        if Version(version) == first:
            return texts
        limit = f"<{version}"


def add_hashes(lock: str, folder: Path) -> str:
    """A lock with the hashes of the wheels in a folder, which uv leaves out, but compares."""
    for path in sorted(folder.glob("*.whl")):
        with suppress(InvalidWheelFilename):
            name, version, _, _ = parse_wheel_filename(path.name)
            pin = re.compile(rf"(?m)^{re.escape(f'{name}=={version}')}(?= |$)")
            if pin.search(lock):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                lock = pin.sub(rf"\g<0> --hash=sha256:{digest}", lock)
    return lock


# What was installed


def find_packages(folders: Sequence[str]) -> dict[str, Distribution]:
    """The packages in folders by name; Python imports the first of a name."""
    packages: dict[str, Distribution] = {}
    for package in distributions(path=list(folders)):
        packages.setdefault(canonicalize_name(package.name), package)
    return packages


def direct_url(package: Distribution) -> dict[str, Any]:
    """The commit, archive or folder that a package came from; empty if it came from an index."""
    source: dict[str, Any] = json.loads(package.read_text("direct_url.json") or "{}")
    return source


def installed_version(package: Distribution) -> str:
    """A package's version and, if not from an index, its source: "0.21.2 at commit a8d99cf0"."""
    source = direct_url(package)
    if "vcs_info" in source:
        return f"{package.version} at commit {source['vcs_info']['commit_id'][:8]}"
    if source:
        return f"{package.version} from {source['url']}"
    return package.version


def recorded_hashes(package: Distribution) -> dict[str, str]:
    """The hash of each file of a package's archive, by path.

    Scripts are left out, since they contain the path of a Python.
    """
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
    """Whether a package is installed here, from the same commit or archive and file by file."""
    if here is None or installed_version(package) != installed_version(here):
        return False
    hashes = recorded_hashes(package)
    return bool(hashes) and hashes == recorded_hashes(here) and not changed_file(here)


def differs(requirement: Requirement, package: Distribution) -> bool:
    """Whether a package has another version than a requirement, or comes from another place."""
    source = direct_url(package)
    is_version = requirement.specifier.contains(package.version, prereleases=True)
    if not is_version or bool(requirement.url) != bool(source):
        return True
    commit = ADDRESS_COMMIT.search(requirement.url or "")
    return commit is not None and commit[1] != source.get("vcs_info", {}).get("commit_id")


def check_packages(
    requirements: Sequence[str], lock: str, packages: Mapping[str, Distribution]
) -> None:
    """Compare what was installed with what was named and with its lock.

    Raises:
        InputError: if they differ.
    """
    # The lock has the name of an address that was given without one.
    texts = [text for text in requirements if not text.startswith("git+")]
    texts += PIN.findall(lock)
    for requirement in map(Requirement, texts):
        package = packages.get(canonicalize_name(requirement.name))
        if package is None:
            raise InputError(f"asked for {requirement}, which was not installed")
        if differs(requirement, package):
            contents = f"{package.name} {installed_version(package)}"
            raise InputError(f"asked for {requirement}, but what was installed is {contents}")
    for name, package in packages.items():
        file = changed_file(package)
        if file:
            reason = f"{file} is not as {name} {package.version} has it: it was edited"
            way_out = f"`python -m uv cache clean {name}` and the same command install it again"
            raise InputError(f"{reason}; {way_out}")


# Commands


def run_uv(
    arguments: Sequence[str], failure: str, *, text: str = "", python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run uv for a Python's environment; raises InputError with its reason if it fails."""
    command = [find_uv_bin(), "--color=never", *arguments, f"--python={python}"]
    return run_command(command, failure, text)


def read_output(command: Sequence[str], failure: str) -> list[str]:
    """The lines that a command prints; raises InputError with its reason if it fails."""
    return run_command(command, failure).stdout.splitlines()


def run_command(
    command: Sequence[str], failure: str, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command that reads a text; raises InputError if it fails.

    The reason is the last error or cause that uv or git names, or else the last line.
    """
    try:
        answer = subprocess.run(
            command, input=text, capture_output=True, check=False, encoding="utf-8"
        )
    except OSError as error:
        raise InputError(f"{failure}: {command[0]}: {error.strerror}") from None
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        reasons = REASON.findall(answer.stderr) or lines
        raise InputError(f"{failure}: {reasons[-1].strip()}")
    return answer
