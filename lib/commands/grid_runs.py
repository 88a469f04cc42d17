"""Runs of a micro grid that a command trains. In: seeds and draws. Out: one JSON file each, which is not trained twice."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.grid.cells import STUDY_IDS
from lib.grid.profiles import ZOO_PROFILE
from lib.grid.zoo import zoo
from lib.record import Record
from lib.results.files import read_list

ROOT = Path(__file__).parents[2]
Grid = Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """One session of a micro grid: its cells with each of some seeds.

    Attributes:
        folder: where its JSON is kept.
        profile: quick, or zoo.
        seeds: of initialisation, dropout and the order of rows.
        draw: of the noise that moves the start; None moves nothing.
        only: these cells; none takes all.
    """

    folder: Path
    profile: str = "quick"
    seeds: Sequence[int]
    draw: int | None = None
    only: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells that it trains."""
        return self.only or (zoo().ids(ZOO_PROFILE) if self.profile == ZOO_PROFILE.id else STUDY_IDS)

    @property
    def path(self) -> Path:
        """Its JSON."""
        seeds = f"seeds-{self.seeds[0]}-{self.seeds[-1]}" + ("-more" if self.only else "")
        return self.folder / (f"{seeds}.json" if self.draw is None else f"{seeds}-draw-{self.draw}.json")

    def train(self, workers: str) -> None:
        """Train it. A cell that misses a bound still has its row."""
        options = [] if self.draw is None else ["--perturb", str(self.draw)]
        options += ["--cells", ",".join(self.only)] if self.only else []
        train(self.path, workers, "-m", self.profile, "--seeds", ",".join(map(str, self.seeds)), *options)

    def grids(self) -> dict[int, Grid]:
        """The grid's records by seed; raises InputError where one is missing or the file is of another run."""
        records = {(record.seeds.seed, record.cell): record for record in read_list(self.path)}
        if {(r.seeds.seed, r.seeds.perturbation) for r in records.values()} != {(seed, self.draw) for seed in self.seeds}:
            raise InputError(f"{self.path} is of other seeds or draws than its name says; remove it, or leave out --reuse")
        for seed in self.seeds:
            for cell in self.cells:
                if (seed, cell) not in records:
                    raise InputError(f"{cell} of seed {seed} is missing in {self.path}; complete runs only")
        return {seed: {cell: records[seed, cell] for cell in self.cells} for seed in self.seeds}


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
