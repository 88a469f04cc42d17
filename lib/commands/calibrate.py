"""Measure the quick profile's bounds and training noise: `python -m lib calibrate` trains the study's cells 14 times.

It trains five seeds, and on three of them three more starts each that are moved in their last digits. It writes
benchmarks/thresholds/quick.toml, what a healthy run reaches, and noise.toml, what the gate holds a change to. Runs are kept in
.cache/calibrate: --reuse takes those that are there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.grid.cells import STUDY_IDS
from lib.record import Record
from lib.results.calibration import Calibration, Grid, noise_toml, score_of, thresholds_toml
from lib.results.files import read_records
from lib.results.noise import Key

ROOT = Path(__file__).parents[2]
RUNS = ROOT / ".cache" / "calibrate"
THRESHOLDS = ROOT / "benchmarks" / "thresholds"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run of the quick grid: its seed, and the draw that moves its start; None moves nothing."""

    seed: int
    draw: int | None = None

    @property
    def path(self) -> Path:
        """Where its JSON is kept."""
        return RUNS / (f"seed-{self.seed}.json" if self.draw is None else f"seed-{self.seed}-draw-{self.draw}.json")

    def run(self, workers: str) -> None:
        """Train it. A cell that misses an old bound still has its row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        perturb = [] if self.draw is None else ["--perturb", str(self.draw)]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "quick", "-n", workers, "--seed", str(self.seed), *perturb]
        subprocess.run([*command, f"--benchmark-json={self.path}"], cwd=ROOT, check=False)


def planned(seeds: int, perturbed: int, draws: int) -> list[Training]:
    """A training a seed, then so many draws for each of the perturbed seeds, 0 and up."""
    plain = [Training(seed=seed) for seed in range(seeds)]
    return plain + [Training(seed=seed, draw=draw) for seed in range(perturbed) for draw in range(draws)]


def grids(plan: Sequence[Training], workers: str, *, reuse: bool) -> Iterator[tuple[Training, Grid]]:
    """The study's records of every training, trained where they are not there to be reused."""
    for place, training in enumerate(plan, start=1):
        kept = reuse and training.path.is_file()
        print(f"{place} of {len(plan)}: {'reuses' if kept else 'trains'} {training.path.name}", flush=True)
        if not kept:
            training.run(workers)
        yield training, study(read_records(training.path), training)


def study(records: Grid, training: Training) -> dict[str, Record]:
    """The study's cells, in order; raises InputError where one is missing or the file is of another training."""
    for cell in STUDY_IDS:
        if cell not in records:
            raise InputError(f"{cell} is missing in {training.path}; calibrate from complete runs only")
        seeds = records[cell].seeds
        if (seeds.seed, seeds.perturbation) != (training.seed, training.draw):
            raise InputError(f"{training.path} is of another seed or draw than its name says; remove it, or leave out --reuse")
        for metric in records[cell].bounded_scores:
            score_of(records, cell, metric)
    return {cell: records[cell] for cell in STUDY_IDS}


def calibration(runs: Sequence[tuple[Training, Grid]], controls: dict[Key, float]) -> Calibration:
    """Runs by what they are for: a perturbed seed's run without a draw is one more draw."""
    perturbed: dict[int, list[Grid]] = {training.seed: [] for training, _ in runs if training.draw is not None}
    for training, grid in runs:
        if training.seed in perturbed:
            perturbed[training.seed].append(grid)
    return Calibration(seeds=[grid for training, grid in runs if training.draw is None], perturbed=perturbed, controls=controls)


def read_controls(path: Path) -> dict[Key, float]:
    """The best score that any control reached, by cell and score; raises InputError where the file has no controls."""
    best: dict[Key, float] = {}
    try:
        rows = [row["extra_info"] for row in json.loads(path.read_text())["benchmarks"]]
        for row in rows:
            for metric, score in row["scores"].items():
                best[row["of"], metric] = max(score or 0.0, best.get((row["of"], metric), 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        advice = f"`pytest -m controls --benchmark-json={path}` writes it"
        raise InputError(f"{path} holds no controls ({type(error).__name__}: {error}); {advice}") from None
    return best


def blunt(measured: Calibration) -> list[str]:
    """A sentence for every bound that a healthy run may miss, because a lower one would lie near a control."""
    return [
        f"blunt: {cell} {metric} {bound.minimum:.1f}; a healthy run needs {bound.healthy:.1f}, less than two thirds of the way "
        f"from the control's {measured.controls[cell, metric]:.1f}; lower its training noise"
        for (cell, metric), bound in measured.bounds().items()
        if bound.blunt
    ]


def main(arguments: list[str] | None = None) -> int:
    """Train, write, say which bounds are blunt; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib calibrate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1, at least 2 (default 5)")
    parser.add_argument("--perturbed-seeds", type=int, default=3, metavar="N", help="seeds with perturbed runs (default 3)")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="perturbed runs of each of them (default 3)")
    parser.add_argument("--workers", default="auto", metavar="N", help="processes (default: one a core)")
    parser.add_argument("--reuse", action="store_true", help="take runs that are in .cache/calibrate; train the others")
    parser.add_argument("--controls", type=Path, metavar="FILE", help="JSON of `pytest -m controls`: no bound near a control")
    options = parser.parse_args(arguments)
    if options.seeds < 2 or options.perturbed_seeds > options.seeds:
        parser.error("a standard deviation needs at least 2 seeds, and every perturbed seed is one of them")
    try:
        controls = read_controls(options.controls) if options.controls else {}
        plan = planned(options.seeds, options.perturbed_seeds, options.draws)
        measured = calibration(list(grids(plan, options.workers, reuse=options.reuse)), controls)
        texts = {"quick.toml": thresholds_toml(measured), "noise.toml": noise_toml(measured)}
    except InputError as error:
        parser.error(str(error))
    for name, text in texts.items():
        (THRESHOLDS / name).write_text(text)
    print(*blunt(measured), f"wrote {' and '.join(texts)} from {len(plan)} runs", sep="\n")
    return 0
