"""What pip, or uv, would change in this environment for some requirements; and copies of the checkouts among them."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tunegrid.commands.environments import output_of
from tunegrid.errors import InputError
from tunegrid.machine import PACKAGES
from tunegrid.results.resume_key import content_digest

DRY_RUN = ("install", "--dry-run")
# Of a file of requirements: where packages are looked for.
PLACES = ("-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--no-index", "--trusted-host", "--pre")
ADDED = re.compile(r" \+ (?P<pin>\S+?)(?: @ (?P<url>\S+)| \(from (?P<origin>\S+)\))?")  # a line of uv's
BUILDS = ("pyproject.toml", "setup.py")  # a checkout has one of them
SUITE = "tunegrid"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a side of an upgrade asks for.

    Attributes:
        specs: requirements as of pip, or checkouts: "peft@../peft", "../peft".
        files: of requirements.
        options: of pip, as where it looks for wheels.
    """

    specs: Sequence[str] = ()
    files: Sequence[Path] = ()
    options: Sequence[str] = ()

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.specs or self.files)

    @property
    def places(self) -> list[str]:
        """Options of pip that say where packages are, those in the files, too."""
        given = [shlex.split(line) for line in self._lines if re.split(r"[\s=]", line)[0] in PLACES]
        return [*self.options, *(word for words in given for word in words)]

    @property
    def names(self) -> list[str]:
        """The packages that are asked for by name."""
        texts = (*self.specs, *self._lines)
        return [match[0] for text in texts if (match := re.match(r"[\w.-]+(?=$|[\s\[<>=!~@;])", text)) and text[0] != "-"]

    @property
    def _lines(self) -> list[str]:
        return [line for path in self.files for line in lines_of(path)]

    @property
    def text(self) -> str:
        """As on the command line."""
        return " ".join([*self.specs, *(f"-r {path}" for path in self.files)])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What has to be installed.

    Attributes:
        sources: one for each package, as pip takes it.
        checkouts: the digits of the code of each checkout, by the URL of its copy, and its folder.
    """

    sources: Sequence[str]
    checkouts: Mapping[str, tuple[str, Path]]

    @property
    def content(self) -> list[str]:
        """The sources, with the code of checkouts in the place of the copies' URLs."""
        parted = [source.partition(" @ ") for source in self.sources]
        return sorted(f"{name}{at}{self.checkouts[url][0] if url in self.checkouts else url}" for name, at, url in parted)

    @property
    def names(self) -> list[str]:
        """Of the packages, the suite's own libraries first."""
        names = [canonicalize_name(re.split(r"==| @ ", source)[0]) for source in self.sources]
        return sorted(names, key=lambda name: name not in PACKAGES)


@contextmanager
def plan(wanted: Wanted, folder: Path) -> Iterator[Plan]:
    """What pip would change here; copies of checkouts stand below `folder` meanwhile.

    Raises:
        InputError: where pip cannot install it, a checkout is none, nothing would change, or nothing that the suite uses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="source-") as copies:
        arguments, checkouts = [], {}
        for number, spec in enumerate(wanted.specs):
            name, checkout = checkout_of(spec)
            if checkout:
                copy = copied(checkout, Path(copies) / str(number) / checkout.name)
                checkouts[copy.as_uri()] = (content_digest(copy), checkout)
                spec = f"{name} @ {copy.as_uri()}" if name else copy.as_uri()
            arguments.append(spec)
        for path in wanted.files:
            if not path.is_file():
                raise InputError(f"{path} is no file of requirements")
            _check_file(path)
            arguments += ["-r", str(path)]
        planned = Plan(sources=changed_by(arguments, wanted), checkouts=checkouts)
        if not planned.sources:
            raise InputError(f"nothing to upgrade: what is installed here is as {wanted.text} asks")
        if not set(planned.names) & used_by(SUITE):
            names = " and ".join(planned.names[:3])
            raise InputError(f"{names}: no library that the suite imports is among what would change, so no cell can tell")
        yield planned


def _check_file(path: Path) -> None:
    """Raises InputError where requirements name a checkout, which pip would build, and write into, where it stands."""
    for line in lines_of(path):
        place = re.sub(r"^(-e|--editable)[\s=]+", "", line)
        if not place.startswith("-") and checkout_of(place)[1]:
            raise InputError(f"{path} names a checkout, {place}: give it by itself, as in `tunegrid upgrade NAME@{place}`")


def lines_of(path: Path) -> list[str]:
    """The lines of a file of requirements, without their comments."""
    texts = path.read_text(encoding="utf-8").splitlines()
    return [line for text in texts if (line := text.partition(" #")[0].strip()) and not line.startswith("#")]


def used_by(package: str) -> set[str]:
    """The packages that one needs, and those that its libraries may use: what they need for an extra, too."""
    known, waiting = {package}, [package]
    while waiting:
        name, needs = waiting.pop(), list[str]()
        with suppress(PackageNotFoundError):
            needs = requires(name) or []
        for requirement in map(Requirement, needs):
            needed = canonicalize_name(requirement.name)
            is_extra = "extra" in str(requirement.marker)
            if needed not in known and (not is_extra or name in PACKAGES):
                known.add(needed)
                waiting += [] if is_extra else [needed]
    return known


# Checkouts


def checkout_of(spec: str) -> tuple[str, Path | None]:
    """The name and the folder of a checkout, as in "peft@../peft" or "../peft"; no folder for what pip reads itself.

    Raises:
        InputError: where the folder is no checkout.
    """
    name, at, place = (part.strip() for part in spec.rpartition("@"))
    if "://" in spec or place.endswith((".whl", ".tar.gz", ".zip")) or not (at or place.startswith((".", "/", "~"))):
        return "", None
    folder = Path(place).expanduser().resolve()
    if not any((folder / file).is_file() for file in BUILDS):
        raise InputError(f"{place} is no checkout of a library: expected a folder with a {' or '.join(BUILDS)}")
    return name, folder


def copied(checkout: Path, to: Path) -> Path:
    """A copy of a working tree, which pip builds in place of it: a build writes into the folder that it is of.

    The history, by which some builds name their version, is a link; caches, virtual environments and builds stay behind.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        top = Path(folder) == checkout
        return [name for name in names if name == "__pycache__" or (top and _stays(checkout / name))]

    shutil.copytree(checkout, to, symlinks=True, ignore=left_out)
    if (checkout / ".git").exists():
        (to / ".git").symlink_to(checkout / ".git")
    return to


def _stays(path: Path) -> bool:
    hidden = path.name.startswith(".") and path.is_dir()
    return hidden or path.name in (".git", "build", "dist") or path.suffix == ".egg-info" or (path / "pyvenv.cfg").is_file()


# What would change


def changed_by(arguments: Sequence[str], wanted: Wanted) -> list[str]:
    """What would be installed here for these arguments, without what is here already; raises InputError where nothing can."""
    failure = f"{wanted.text} cannot be installed"
    options = [*wanted.options, *arguments]
    if uv := shutil.which("uv"):
        named = [
            word for name in wanted.names for word in ("--upgrade-package", name)
        ]  # its --upgrade is of all that is needed
        command = [uv, "pip", *DRY_RUN, "--python", sys.executable, *named, *options]
        return [source_said(match) for line in output_of(command, failure, errors_too=True) if (match := ADDED.fullmatch(line))]
    quiet = ("--disable-pip-version-check", "--quiet", "--report", "-")
    command = [sys.executable, "-m", "pip", *DRY_RUN, "--upgrade", *quiet, *options]
    report = json.loads("\n".join(output_of(command, failure)))
    return [source_reported(item) for item in report["install"]]


def source_said(match: re.Match[str]) -> str:
    """What uv says that it would install, as pip takes it."""
    url = match["url"] or match["origin"]
    return f"{match['pin'].partition('==')[0]} @ {url}" if url else match["pin"]


def source_reported(item: Mapping[str, Any]) -> str:
    """An entry of pip's report, as pip takes it."""
    info, about = item["download_info"], item["metadata"]
    if not item["is_direct"]:
        return f"{about['name']}=={about['version']}"
    vcs = info.get("vcs_info")
    url = f"{vcs['vcs']}+{info['url']}@{vcs['commit_id']}" if vcs else info["url"]
    return f"{about['name']} @ {url}" + (f"#subdirectory={info['subdirectory']}" if "subdirectory" in info else "")
