"""Reads the bounds in `benchmarks/thresholds/*.toml`; returns what a run missed, as sentences."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

Bounds = Mapping[str, float]


def load_bounds(path: Path) -> dict[str, Bounds]:
    """Minimum points by metric, by cell id; empty where none have been measured yet."""
    if not path.is_file():
        return {}
    cells = tomllib.loads(path.read_text())["cells"]
    return {cell: {metric: entry["minimum"] for metric, entry in metrics.items()} for cell, metrics in cells.items()}


def missed(scores: Mapping[str, float | None], bounds: Bounds) -> list[str]:
    """A sentence for every bound that the scores do not reach; a missing score is below every bound."""
    sentences = []
    for metric, minimum in bounds.items():
        score = scores.get(metric)
        if score is None:
            sentences.append(f"{metric} was not measured, its bound is {minimum:.1f}")
        elif not score >= minimum:
            sentences.append(f"{metric} {score:.1f} is below {minimum:.1f}")
    return sentences
