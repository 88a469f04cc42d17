"""Reads `benchmarks/thresholds/*.toml`: what scores must reach, what healthy runs reach, and which drop counts."""

import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.errors import InputError, first_line

THRESHOLDS = ROOT / "benchmarks" / "thresholds"
LAB_CALIBRATE, OWN_CALIBRATE = "python -m tunegrid.lab calibrate", "tunegrid calibrate"
NEEDED = {
    "points": ("other",),
    "memory": ("ledger", "rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib"),
    "speed": ("step_seconds",),
}
Bounds = Mapping[str, float]  # minimum points by metric
# By cell and score: minimum and mean of healthy runs, among others.
Evidence = Mapping[str, Mapping[str, Mapping[str, float]]]


def beside(grid_file: Path, profile: str) -> Path:
    """Where the bounds of a user's cells stand: sst2.quick.toml beside sst2.py."""
    return grid_file.with_suffix(f".{profile}.toml")


def load_bounds(path: Path) -> dict[str, Bounds]:
    """Bounds by cell id; empty where none have been measured yet. Raises InputError where the file is not sound."""
    known = _entries(path, needed=("minimum",))
    return {cell: {metric: entry["minimum"] for metric, entry in metrics.items()} for cell, metrics in known.items()}


def load_evidence(path: Path) -> Evidence:
    """What a profile's bounds rest on; empty where it has none. Raises InputError where the file is not sound."""
    return _entries(path, needed=("minimum", "mean"))


def _entries(path: Path, needed: Collection[str]) -> Evidence:
    if not path.is_file():
        return {}
    with tables(path, "bounds", LAB_CALIBRATE if path.parent == THRESHOLDS else OWN_CALIBRATE) as content:
        cells = {cell: table(metrics) for cell, metrics in table(content["cells"]).items()}
        return {cell: {metric: _entry(entry, needed) for metric, entry in metrics.items()} for cell, metrics in cells.items()}


def _entry(entry: Any, needed: Collection[str]) -> dict[str, Any]:
    """What is known of a cell's score: numbers, and a list of scores."""
    scores = {"scores": list(map(number, entry["scores"]))} if "scores" in table(entry) else {}
    return numbers({name: value for name, value in entry.items() if name not in scores}, needed) | scores


def load_margins(path: Path = THRESHOLDS / "margins.toml") -> dict[str, dict[str, float]]:
    """The drop that is no regression yet, by kind and quantity. Raises InputError where the file is not sound."""
    with tables(path, "margins") as content:
        return {kind: numbers(content[kind], names) for kind, names in NEEDED.items()}


# What such a file may hold


@contextmanager
def tables(path: Path, what: str, command: str = "") -> Iterator[Mapping[str, Any]]:
    """A TOML file's content; whatever is wrong with it meanwhile is an InputError of one sentence.

    `command` writes the file; none writes margins, which people set.
    """
    try:
        yield tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {first_line(error)[:200]}"
        way_out = f"`{command}` writes it" if command else "take the repository's"
        raise InputError(f"{path} holds no {what} ({cause}); {way_out}") from None


def table(value: Any) -> dict[str, Any]:
    """A TOML table; raises TypeError for anything else."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not a table")
    return value


def numbers(value: Any, needed: Collection[str] = ()) -> dict[str, float]:
    """A table of numbers; raises TypeError for anything else, and KeyError where one that is needed is missing."""
    if missing := set(needed) - table(value).keys():
        raise KeyError(min(missing))
    return {name: number(figure) for name, figure in value.items()}


def number(value: Any, low: float = -1e9, high: float = 1e9) -> float:
    """A number between these; raises TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise TypeError(f"{value!r} is not a number from {low:g} to {high:g}")
    return value
