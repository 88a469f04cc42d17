"""Measure the quick profile's bounds and training noise: `python -m lib calibrate` trains the study's cells 14 times.

It trains five seeds, and on three of them three more starts each that are moved in their last digits. It writes
benchmarks/thresholds/quick.toml, what a healthy run reaches, and noise.toml, what the gate holds a change to. Runs are kept in
.cache/calibrate: --reuse takes those that are there. `--profile zoo` trains the zoo, and writes bounds alone, to zoo.toml.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lib.commands.grid_runs import ROOT, GridRun, train_missing
from lib.errors import InputError
from lib.grid.cells import STUDY_IDS
from lib.results.calibration import CONTROL_SHARE, Calibration, Grid, noise_toml, thresholds_toml
from lib.results.noise import Key

RUNS = ROOT / ".cache" / "calibrate"
# Of the way from the mean to a control. Five seeds of the zoo's many methods leave more noise than ten of the study's three.
CONTROL_SHARES = {"quick": CONTROL_SHARE, "zoo": 2 / 3}
THRESHOLDS = ROOT / "benchmarks" / "thresholds"


def planned(
    seeds: int, perturbed: int, draws: int, profile: str = "quick", more: tuple[str, ...] = (), more_seeds: int = 0
) -> list[GridRun]:
    """One session of all seeds, one of more seeds for some cells, then one a draw with the perturbed seeds, 0 and up.

    The zoo has no perturbed ones.
    """
    folder = RUNS / profile if profile == "zoo" else RUNS
    plan = [GridRun(folder=folder, profile=profile, seeds=range(seeds))]
    if more and more_seeds:
        plan.append(GridRun(folder=folder, profile=profile, seeds=range(seeds, seeds + more_seeds), only=more))
    draws = 0 if profile == "zoo" or not perturbed else draws
    return plan + [GridRun(folder=folder, seeds=range(perturbed), draw=1 + draw) for draw in range(draws)]


def calibration(runs: Sequence[tuple[GridRun, Mapping[int, Grid]]], controls: dict[Key, float]) -> Calibration:
    """Runs by what they are for: a perturbed seed's run without a draw is one more draw."""
    drawn = {seed for run, _ in runs if run.draw is not None for seed in run.seeds}
    perturbed = {seed: [grids[seed] for _, grids in runs if seed in grids] for seed in sorted(drawn)}
    seeds = [grid for run, grids in runs if run.draw is None for grid in grids.values()]
    return Calibration(seeds=seeds, perturbed=perturbed, controls=controls)


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
    parser.add_argument("--profile", choices=("quick", "zoo"), default="quick", help="which grid (default quick)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1, at least 2 (default 5)")
    parser.add_argument("--more", default="", metavar="CELLS", help="cells with rare failures, which need more seeds")
    parser.add_argument("--more-seeds", type=int, default=10, metavar="N", help="seeds that those have more (default 10)")
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
        more = tuple(filter(None, map(str.strip, options.more.split(","))))
        if unknown := sorted(set(more).difference(STUDY_IDS)):
            raise InputError(f"--more names no cells of the study: {', '.join(unknown)}")
        plan = planned(options.seeds, options.perturbed_seeds, options.draws, options.profile, more, options.more_seeds)
        train_missing(plan, options.workers, reuse=options.reuse)
        share = CONTROL_SHARES[options.profile]
        measured = replace(calibration([(run, run.grids()) for run in plan], controls), control_share=share)
        texts = {f"{options.profile}.toml": thresholds_toml(measured)}
        texts |= {"noise.toml": noise_toml(measured)} if options.profile == "quick" else {}
    except InputError as error:
        parser.error(str(error))
    for name, text in texts.items():
        (THRESHOLDS / name).write_text(text)
    runs = sum(len(run.seeds) for run in plan)
    print(*blunt(measured), f"wrote {' and '.join(texts)} from {runs} runs of the grid", sep="\n")
    return 0
