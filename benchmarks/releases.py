"""Reads `releases.toml`: real releases known to be bad, what must turn red with each, and the good release beside it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunegrid.commands.bisect import RUNS
from tunegrid.commands.environments import Releases, lock_of, python_with
from tunegrid.errors import InputError

LADDER = Path(__file__).with_name("releases.toml")
FOLDER = RUNS  # where a session looks for environments that may go


class NoIndex(InputError):
    """No package index answers."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release that is known to be bad.

    Attributes:
        bad, good: requirements, as in "tokenizers==0.23.1".
        marker: of the suite, that must turn red; `quick` is gated on a run of the good release.
        cells: that show it; none where the marker's tests are of no cell.
        only: which of the marker's tests, as `-k` takes it; empty for all.
        named: words of what the red run says.
        what, source: what it did, and where that was reported.
    """

    bad: str
    good: str
    marker: str
    cells: tuple[str, ...]
    named: str
    what: str
    source: str
    only: str = ""

    @property
    def id(self) -> str:
        """The release and the marker; two markers may see one release."""
        return f"{self.bad}-{self.marker}"


def ladder(path: Path = LADDER) -> list[Release]:
    """The table's rows, in its order."""
    rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["release"]
    return [Release(**{**row, "cells": tuple(row["cells"])}) for row in rows]


def python_of(requirement: str, folder: Path = FOLDER) -> Path:
    """A Python with this release, in an environment as `bisect` makes them: the one package, and all else from here.

    Raises NoIndex where nothing can be installed, and InputError where only this release cannot.
    """
    name, _, version = requirement.partition("==")
    own = folder / f"release-{name}-{version}"
    own.mkdir(parents=True, exist_ok=True)
    releases = Releases(name=name)
    try:
        with FileLock(lock_of(own)):  # while it is held, no session removes the environment
            return python_with(releases, version, own / "environment")
    except InputError as error:
        try:
            releases.between("0", version)
        except InputError:
            raise NoIndex(str(error)) from None
        raise
