"""Measure the quick profile's thresholds: `python -m lib calibrate` trains the study's cells with five seeds.

This takes about ten minutes on two cores. For each bounded score it writes mean - 3 sd, with the scores it comes from, to
benchmarks/thresholds/quick.toml.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean, stdev

from lib.errors import InputError
from lib.grid.cells import STUDY, STUDY_IDS
from lib.grid.profiles import QUICK_PROFILE
from lib.record import Record
from lib.results.files import read_records
from lib.results.thresholds import minimum_of

ROOT = Path(__file__).parents[2]
RUNS = ROOT / ".cache" / "calibrate"
TARGET = ROOT / "benchmarks" / "thresholds" / "quick.toml"
Runs = Sequence[Mapping[str, Record]]


def train(seed: int, workers: str) -> Path:
    """Train the quick grid with one seed; return the path of its JSON. A cell that misses an old bound still has its row."""
    path = RUNS / f"seed-{seed}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "quick", "-n", workers, "--seed", str(seed), f"--benchmark-json={path}"]
    subprocess.run(command, cwd=ROOT, check=False)
    return path


def toml(runs: Runs) -> str:
    """The thresholds file; raises InputError where a run lacks a cell or a cell did not finish."""
    lines = evidence(runs)
    for cell in STUDY.cells(QUICK_PROFILE):
        lines += ["", f"[cells.{cell.id}]"]
        lines += [entry(name, [score_of(run, cell.id, name) for run in runs]) for name in cell.task.bounded_scores]
    return "\n".join(lines) + "\n"


def evidence(runs: Runs) -> list[str]:
    """Where the figures come from: device, date, seeds, versions. Raises InputError where a run lacks its first cell."""
    records = [run[STUDY_IDS[0]] for run in runs if STUDY_IDS[0] in run]
    if len(records) < len(runs) or not records[0].device:
        raise InputError(f"{STUDY_IDS[0]} is missing in one of the runs; calibrate from complete runs only")
    packages = ", ".join(f'{name} = "{version}"' for name, version in records[0].versions.items() if version)
    return [
        "# Written by `python -m lib calibrate`. Scores are points, 0-100; minimum = mean - 3 sd of the seeds' scores,",
        "# and at least one point below the mean.",
        "[evidence]",
        f'date = "{date.today()}"',
        f'device = "{records[0].device.name}, {records[0].device.threads} thread a process"',
        f"seeds = {[record.seeds.seed for record in records]}",
        f"versions = {{ {packages} }}",
    ]


def entry(metric: str, scores: Sequence[float]) -> str:
    """One metric's bound with the scores it comes from."""
    shown = ", ".join(f"{score:.2f}" for score in scores)
    return (
        f"{metric} = {{ minimum = {minimum_of(scores):.1f}, mean = {fmean(scores):.2f}, "
        f"sd = {stdev(scores):.2f}, scores = [{shown}] }}"
    )


def score_of(run: Mapping[str, Record], cell: str, metric: str) -> float:
    """One score of a finished cell; raises InputError where the run has none."""
    score = run[cell].scores.get(metric) if cell in run else None
    if score is None:
        raise InputError(f"{cell} left no {metric} in one of the runs; calibrate from complete runs only")
    return score


def main(arguments: list[str] | None = None) -> int:
    """Train, write, report how many runs it took; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib calibrate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1, at least 2 (default 5)")
    parser.add_argument("--workers", default="auto", metavar="N", help="processes (default: one a core)")
    parser.add_argument("--reuse", action="store_true", help="read the runs that are in .cache/calibrate; train nothing")
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
