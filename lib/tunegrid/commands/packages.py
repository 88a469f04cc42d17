"""Parses, locks and checks the packages that `upgrade`, `history` and `bisect` install.

uv resolves and installs the packages. A lock pins each package to a commit or to archive hashes.
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

# With fixed dates, identical files give identical commits
DATES = ("GIT_AUTHOR_DATE=@0 +0000", "GIT_COMMITTER_DATE=@0 +0000")
# Error lines of uv, of git, and of Python in a build that uv runs
REASON = re.compile(r"(?m)^ *(?:(?:error|fatal|cause|Caused by):|╰─▶|(?=\w+Error:)) ?(.+)$")
CHANGE = re.compile(r"(?m)^ \+ (.+)$")  # in the output of `uv pip install --dry-run`
# uv ignores pip's settings but has options of the same names. If several sections set an option,
# the first section here wins.
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "constraint")
PIP_SECTIONS = (":env:", "install", "global")
UV_INDEXES = {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}
PIN = re.compile(r"(?m)^(\S.*?)(?: --hash=.+| \\)*$")  # a line of a lock, without hashes
ADDRESS_COMMIT = re.compile(r"@([0-9a-f]{40})\b")  # the commit in an address


# Choosing what to install


def parse_requirement(spec: str) -> str:
    """Check a requirement, such as "peft==0.22"; turn "peft@../peft" into a checkout's address.

    Raises:
        InputError: for anything else, such as an option or a path.
    """
    name, sign, address = map(str.strip, spec.partition("@"))
    try:
        Requirement(name if sign else spec)
    except InvalidRequirement:
        raise InputError(
            f"{spec!r} is no package: expected what pip takes, as in peft==0.22, or peft@../peft"
        ) from None
    if sign and "://" not in address:
        return f"{name} @ {git_address(Path(address).expanduser())}"
    return spec


def git_address(checkout: Path, commit: str = "") -> str:
    """A git+file URL for a commit in a checkout.

    By default, the commit holds the tracked files as they are now. Uncommitted changes
    are stored in a new commit that belongs to no branch.
    """
    git = ["env", *DATES, "git", "-C", str(checkout)]
    failure = f"{checkout} cannot be read as a checkout of a library"
    commit = commit or "".join(read_output([*git, "stash", "create"], failure)) or "HEAD"
    [digits] = read_output([*git, "rev-parse", "--verify", f"{commit}^{{commit}}"], failure)
    return f"git+{checkout.resolve().as_uri()}@{digits}"


def index_options(wheels: Path | None) -> list[str]:
    """The options that tell uv where packages come from: a folder of wheels, or pip's settings.

    If an environment variable configures an index for uv, pip's settings are ignored.
    """
    if wheels:
        return ["--no-index", f"--find-links={wheels.resolve()}"]
    if UV_INDEXES & os.environ.keys():
        return []
    # prints nothing if pip is not installed
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, check=False, encoding="utf-8").stdout
    settings = dict(re.findall(r"^(\S+?)=(.+)$", listing, re.MULTILINE))
    # like pip, take the newest release across all indexes
    options = ["--index-strategy=unsafe-best-match"]
    for name in PIP_SETTINGS:
        keys = [f"{section}.{name}" for section in PIP_SECTIONS]
        value = next((settings[key] for key in keys if key in settings), "''")
        options += [f"--{name}={word}" for word in str(ast.literal_eval(value)).split()]
    return options


def lock_packages(requirements: Sequence[str], options: Sequence[str], *, alone: bool) -> str:
    """Lock the named packages and the others that must change with them.

    Returns the text of a `requirements.txt`. `alone` locks only the named packages, without their
    dependencies.
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
            # The report hides passwords in addresses, so the user's own spelling is kept.
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
    """List the installable releases from `last` (by default the newest) down to `first`.

    uv has no command for this, so it is asked repeatedly for the newest release below the previous
    one.

    Raises:
        InputError: if uv does not find `first`.
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
    """Add the hashes of a folder's wheels to a lock; uv omits these hashes but verifies them."""
    for path in sorted(folder.glob("*.whl")):
        with suppress(InvalidWheelFilename):
            name, version, _, _ = parse_wheel_filename(path.name)
            pin = re.compile(rf"(?m)^{re.escape(f'{name}=={version}')}(?= |$)")
            if pin.search(lock):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                lock = pin.sub(rf"\g<0> --hash=sha256:{digest}", lock)
    return lock


# Checking what was installed


def find_packages(folders: Sequence[str]) -> dict[str, Distribution]:
    """The packages in these folders, by name; of duplicates, the one that Python imports."""
    packages: dict[str, Distribution] = {}
    for package in distributions(path=list(folders)):
        packages.setdefault(canonicalize_name(package.name), package)
    return packages


def direct_url(package: Distribution) -> dict[str, Any]:
    """The commit, archive or folder that a package came from; empty if it came from an index."""
    source: dict[str, Any] = json.loads(package.read_text("direct_url.json") or "{}")
    return source


def installed_version(package: Distribution) -> str:
    """A package's version and, unless it came from an index, its source.

    An example is "0.21.2 at commit a8d99cf0".
    """
    source = direct_url(package)
    if "vcs_info" in source:
        return f"{package.version} at commit {source['vcs_info']['commit_id'][:8]}"
    if source:
        return f"{package.version} from {source['url']}"
    return package.version


def recorded_hashes(package: Distribution) -> dict[str, str]:
    """The hashes that a package's RECORD lists for its files, by path.

    Metadata is omitted, as are scripts, which contain the path of a Python interpreter.
    """
    hashes = {}
    for path, digest, _ in csv.reader((package.read_text("RECORD") or "").splitlines()):
        is_metadata = Path(path).parent.name.endswith(".dist-info")
        if digest.startswith("sha256=") and not is_metadata and not path.startswith(".."):
            hashes[path] = digest
    return hashes


def changed_file(package: Distribution) -> str:
    """The first file of a package that is missing or differs from RECORD; empty if none."""
    for name, digest in recorded_hashes(package).items():
        path = Path(str(package.locate_file(name)))
        if not path.is_file() or file_hash(path) != digest:
            return name
    return ""


def is_same(package: Distribution, here: Distribution | None) -> bool:
    """True if `here` has the same version, source and files as `package`, all unedited."""
    if here is None or installed_version(package) != installed_version(here):
        return False
    hashes = recorded_hashes(package)
    return bool(hashes) and hashes == recorded_hashes(here) and not changed_file(here)


def differs(requirement: Requirement, package: Distribution) -> bool:
    """True if a package does not match a requirement's version or source."""
    source = direct_url(package)
    is_version = requirement.specifier.contains(package.version, prereleases=True)
    if not is_version or bool(requirement.url) != bool(source):
        return True
    commit = ADDRESS_COMMIT.search(requirement.url or "")
    return commit is not None and commit[1] != source.get("vcs_info", {}).get("commit_id")


def check_packages(
    requirements: Sequence[str], lock: str, packages: Mapping[str, Distribution]
) -> None:
    """Compare the installed packages with the requirements and their lock.

    Raises:
        InputError: if they differ, or if an installed file was edited.
    """
    # Addresses may be given without a package name, but the lock names the package.
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


# Running commands


def run_uv(
    arguments: Sequence[str], failure: str, *, text: str = "", python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run uv on a Python's environment; raises InputError with uv's reason if it fails."""
    command = [find_uv_bin(), "--color=never", *arguments, f"--python={python}"]
    return run_command(command, failure, text)


def read_output(command: Sequence[str], failure: str) -> list[str]:
    """The lines that a command prints; raises InputError with the command's reason if it fails."""
    return run_command(command, failure).stdout.splitlines()


def run_command(
    command: Sequence[str], failure: str, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command with `text` as its input; raises InputError if it fails.

    The message ends with the last error or cause in stderr, or else the last line of stderr.
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
