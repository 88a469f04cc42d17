"""Measures the quick profile's bounds. `python -m lib.calibrate` trains every cell with five seeds (about ten minutes on two
cores) and writes mean - 3 sd of each bounded score, with its evidence, to benchmarks/thresholds/quick.toml.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean, stdev

from lib.errors import InputError
from lib.grid.cells import CELL_IDS, grid
from lib.grid.profiles import QUICK_PROFILE
from lib.results.files import read_records
from lib.results.record import Record
from lib.results.thresholds import minimum_of

ROOT = Path(__file__).parents[1]
RUNS = ROOT / ".cache" / "calibrate"
TARGET = ROOT / "benchmarks" / "thresholds" / "quick.toml"
Runs = Sequence[Mapping[str, Record]]


def train(seed: int, workers: str) -> Path:
    """The quick grid with one seed; return the path of its JSON. A cell that misses an old bound still leaves its row."""
    path = RUNS / f"seed-{seed}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "quick", "-n", workers, "--seed", str(seed), f"--benchmark-json={path}"]
    subprocess.run(command, cwd=ROOT, check=False)
    return path


def toml(runs: Runs) -> str:
    """The thresholds file; raises InputError where a run lacks a cell or a cell did not finish."""
    lines = evidence(runs)
    for cell in grid(QUICK_PROFILE):
        lines += ["", f"[cells.{cell.id}]"]
        lines += [entry(name, [score_of(run, cell.id, name) for run in runs]) for name in cell.task.bounded_scores]
    return "\n".join(lines) + "\n"


def evidence(runs: Runs) -> list[str]:
    """Where the figures come from: device, date, seeds, versions."""
    first = runs[0][CELL_IDS[0]]
    seeds = [run[CELL_IDS[0]]["seeds"]["seed"] for run in runs]
    packages = ", ".join(f'{name} = "{found}"' for name, found in first["versions"].items() if found)
    return [
        "# Written by `python -m lib.calibrate`. Scores are points, 0-100; minimum = mean - 3 sd of the seeds' scores,",
        "# and at least one point below the mean.",
        "[evidence]",
        f'date = "{date.today()}"',
        f'device = "{first["device"]["name"]}, {first["device"]["threads"]} thread a process"',
        f"seeds = {seeds}",
        f"versions = {{ {packages} }}",
    ]


def entry(metric: str, scores: Sequence[float]) -> str:
    """One metric's bound with the scores it was drawn from."""
    shown = ", ".join(f"{score:.2f}" for score in scores)
    return (
        f"{metric} = {{ minimum = {minimum_of(scores):.1f}, mean = {fmean(scores):.2f}, "
        f"sd = {stdev(scores):.2f}, scores = [{shown}] }}"
    )


def score_of(run: Mapping[str, Record], cell: str, metric: str) -> float:
    """One score of a finished cell."""
    score = run.get(cell, {}).get("scores", {}).get(metric)
    if score is None:
        raise InputError(f"{cell} left no {metric} in one of the runs; calibrate from complete runs only")
    return float(score)


def main(arguments: list[str] | None = None) -> int:
    """Train, write, report how many cells pass; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.calibrate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1, at least 2 (default 5)")
    parser.add_argument("--workers", default="auto", metavar="N", help="processes (default: one a core)")
    parser.add_argument("--reuse", action="store_true", help="read the runs that lie in .cache/calibrate; train nothing")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("a standard deviation needs at least 2 seeds")
    paths = [RUNS / f"seed-{n}.json" if options.reuse else train(n, options.workers) for n in range(options.seeds)]
    try:
        runs = [read_records(path) for path in paths]
        TARGET.write_text(toml(runs))
    except InputError as error:
        parser.error(str(error))
    print(f"wrote {TARGET.relative_to(ROOT)} from {len(runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
