"""Runs of the quick grid that a command trains. In: seeds and draws. Out: one JSON file each, which is not trained twice."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.grid.cells import STUDY_IDS
from lib.record import Record
from lib.results.files import read_records

ROOT = Path(__file__).parents[2]
Grid = Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """One run of the quick grid.

    Attributes:
        folder: where its JSON is kept.
        seed: of initialisation, dropout and the order of rows.
        draw: of the noise that moves the start; None moves nothing.
    """

    folder: Path
    seed: int
    draw: int | None = None

    @property
    def path(self) -> Path:
        """Its JSON."""
        return self.folder / (f"seed-{self.seed}.json" if self.draw is None else f"seed-{self.seed}-draw-{self.draw}.json")

    def train(self, workers: str) -> None:
        """Train it. A cell that misses a bound still has its row."""
        perturb = [] if self.draw is None else ["--perturb", str(self.draw)]
        train(self.path, workers, "-m", "quick", "--seed", str(self.seed), *perturb)

    def grid(self) -> Grid:
        """The study's records; raises InputError where one is missing or the file is of another run."""
        records = read_records(self.path)
        for cell in STUDY_IDS:
            if cell not in records:
                raise InputError(f"{cell} is missing in {self.path}; complete runs only")
            seeds = records[cell].seeds
            if (seeds.seed, seeds.perturbation) != (self.seed, self.draw):
                raise InputError(f"{self.path} is of another seed or draw than its name says; remove it, or leave out --reuse")
        return {cell: records[cell] for cell in STUDY_IDS}


def train_missing(plan: Sequence[GridRun], workers: str, *, reuse: bool) -> None:
    """Train every run of a plan; with `reuse`, those that are not there."""
    for place, run in enumerate(plan, start=1):
        kept = reuse and run.path.is_file()
        print(f"{place} of {len(plan)}: {'reuses' if kept else 'trains'} {run.path.name}", flush=True)
        if not kept:
            run.train(workers)


def train(path: Path, workers: str, *options: str) -> None:
    """Run pytest with these options and leave its JSON at `path`, under that name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    unfinished = path.with_suffix(".part")
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, *options, f"--benchmark-json={unfinished}"]
    subprocess.run(command, cwd=ROOT, check=False)
    if unfinished.is_file():
        unfinished.replace(path)
