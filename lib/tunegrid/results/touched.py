"""Which quick cells run which files of the libraries: traced once and committed (`benchmarks/touched.json`).

The table says who calls a function of a file, not whether a change of it matters.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tunegrid import ROOT
from tunegrid.disk import replacing
from tunegrid.errors import InputError

TRACED = ROOT / "benchmarks" / "touched.json"


@dataclass(frozen=True, kw_only=True)
class Touched:
    """The table.

    Attributes:
        versions: of the libraries that were traced.
        cells: ids of all cells that were.
        by_file: the cells that call a function of a file; its path begins with the library's folder.
    """

    versions: Mapping[str, str | None]
    cells: Collection[str]
    by_file: Mapping[str, Collection[str]]

    def matches(self, path: str) -> list[str]:
        """The files that a path means: from the library's folder on, in a checkout, or a folder of several."""
        parts = PurePosixPath(path.replace("\\", "/")).parts
        for start in range(len(parts)):
            ending = "/".join(parts[start:])
            if found := [name for name in self.by_file if name == ending or name.startswith(f"{ending}/")]:
                return found
        return []

    def by(self, paths: Iterable[str]) -> set[str]:
        """The cells that run one of these files."""
        return {cell for path in paths for name in self.matches(path) for cell in self.by_file[name]}


def read(path: Path = TRACED) -> Touched:
    """Read the table; raises InputError where there is none, or no such table."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        by_file = {name: group["cells"] for group in content["touched"] for name in group["files"]}
        return Touched(versions=content["versions"], cells=content["cells"], by_file=by_file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no table of traced cells ({error}); `python -m tunegrid.lab touched` writes it") from None


def write(touched: Touched, path: Path = TRACED) -> None:
    """Write the table: files that the same cells run stand together."""
    files: dict[tuple[str, ...], list[str]] = {}
    for name, cells in sorted(touched.by_file.items()):
        files.setdefault(tuple(cell for cell in touched.cells if cell in cells), []).append(name)
    groups = [{"cells": cells, "files": names} for cells, names in files.items()]
    content = {"versions": touched.versions, "cells": list(touched.cells), "touched": groups}
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
