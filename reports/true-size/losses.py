"""Prints the mean training loss of each sixth of the updates, for each cell of run files."""

import json
import sys
from pathlib import Path
from statistics import fmean

PARTS = 6


def mean_by_sixths(losses: list[float]) -> list[float]:
    """The mean loss of each sixth of a run's updates, rounded to two digits."""
    bounds = [round(i * len(losses) / PARTS) for i in range(PARTS + 1)]
    return [round(fmean(losses[bounds[i] : bounds[i + 1]]), 2) for i in range(PARTS)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for row in json.loads(Path(name).read_text())["benchmarks"]:
            record = row["extra_info"]
            print(
                record["cell"],
                record["seeds"]["seed"],
                *mean_by_sixths(record["training"]["losses"]),
            )
