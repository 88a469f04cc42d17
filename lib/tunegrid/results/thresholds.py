"""Reads `benchmarks/thresholds/*.toml`: what scores must reach, what healthy runs reach, and which drop counts."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from tunegrid import ROOT

THRESHOLDS = ROOT / "benchmarks" / "thresholds"
Bounds = Mapping[str, float]  # minimum points by metric
# By cell and score: minimum and mean of healthy runs, among others.
Evidence = Mapping[str, Mapping[str, Mapping[str, float]]]


def load_bounds(path: Path) -> dict[str, Bounds]:
    """Bounds by cell id; empty where none have been measured yet."""
    return {
        cell: {metric: entry["minimum"] for metric, entry in metrics.items()} for cell, metrics in load_evidence(path).items()
    }


def load_evidence(path: Path) -> Evidence:
    """What a profile's bounds rest on; empty where it has none."""
    cells: Evidence = tomllib.loads(path.read_text())["cells"] if path.is_file() else {}
    return cells


def load_margins(path: Path = THRESHOLDS / "margins.toml") -> dict[str, dict[str, float]]:
    """The drop that is no regression yet, by kind and quantity."""
    return tomllib.loads(path.read_text())
