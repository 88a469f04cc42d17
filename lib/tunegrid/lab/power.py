"""What does the gate see? `python -m tunegrid.lab power` prints the smallest drop of each cell called worse four times in five.

It also simulates whole runs of equal quality, with calibrations of their own, and prints how many of them the gate calls worse:
runs of the baseline's seeds, and runs of other seeds; and how many healthy runs miss a bound. Scores are drawn from the
residuals that the calibration measured. It trains nothing.
"""

import argparse
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.lab.measured import note
from tunegrid.lab.simulation import Setting, missed_bounds, smallest, worse_cells
from tunegrid.results.noise import NOISE, PERTURBED, SEEDS, Noise, NoiseKey, load_noise
from tunegrid.results.table import Column, lines, number
from tunegrid.results.thresholds import load_margins

GOAL = 2.0  # points
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="main score", width=10),
    Column(title="noise: same seed", right=True),
    Column(title="between seeds", right=True),
    Column(title="sees, same seed: 1 run", right=True),
    Column(title="3 runs", right=True),
    Column(title="other seeds: 1 run", right=True),
    Column(title="3 runs", right=True),
)
WORDS = {PERTURBED: "same seeds", SEEDS: "other seeds"}


def main(arguments: list[str] | None = None) -> int:
    """Print both; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab power", description=__doc__)
    parser.add_argument("--noise", type=Path, default=NOISE, metavar="FILE", help="calibrated noise (default: the suite's)")
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="simulated runs a figure (default 1000)")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="also note the figures in this file")
    options = parser.parse_args(arguments)
    try:
        noise = load_noise(options.noise)
    except InputError as error:
        refuse(parser, error)
    kinds = [kind for kind, measured in noise.measured.items() if measured]
    if not kinds:
        refuse(parser, f"{options.noise} holds no noise; `python -m tunegrid.lab calibrate` measures it")
    margins = load_margins()["points"]
    table, figures = drops(noise, margins)
    print(*table, sep="\n")
    for kind in kinds:
        drawn = "measured residuals" if noise.scores.get(kind) else "normal noise: the file has no scores of it"
        for seeds in (1, 3):
            setting = Setting(noise=noise, margins=margins, kind=kind, seeds=seeds)
            alarms = sum(map(bool, worse_cells(setting, options.runs)))
            of = f"{WORDS[kind]}, {seeds} {'run' if seeds == 1 else 'runs'}"
            print(f"{alarms} of {options.runs} equal runs are called worse: {of} ({drawn})", flush=True)
            figures[f"worse: {of}"] = alarms
    if SEEDS in kinds:
        figures["miss a bound"] = sum(map(bool, missed_bounds(Setting(noise=noise, margins=margins, kind=SEEDS), options.runs)))
        print(f"{figures['miss a bound']} of {options.runs} healthy runs miss a bound")
    note(options.measured, "power", {"runs": options.runs, **figures})
    return 0


def _noise(setting: Setting, key: NoiseKey) -> str:
    own = setting.estimates.get(key)
    return number(own.sd if own else None, 2)


def drops(noise: Noise, margins: dict[str, float]) -> tuple[list[str], dict[str, int]]:
    """The table, and in how many cells the goal is reached, in words and by setting."""
    settings = {
        (kind, seeds): Setting(noise=noise, margins=margins, kind=kind, seeds=seeds)
        for kind in (PERTURBED, SEEDS)
        for seeds in (1, 3)
    }
    seen = {key: smallest(setting) for key, setting in settings.items()}
    mains = settings[SEEDS, 1].mains
    rows = [
        (
            cell,
            metric,
            *(_noise(settings[kind, 1], (cell, metric)) for kind in (PERTURBED, SEEDS)),
            *(number(seen[key].get(cell), 1) for key in seen),
        )
        for cell, metric in mains.items()
    ]
    reached = {
        f"sees {GOAL:.0f} points: {WORDS[kind]}, {seeds} {'run' if seeds == 1 else 'runs'}": sum(
            drop <= GOAL for drop in smallest_drops.values()
        )
        for (kind, seeds), smallest_drops in seen.items()
    }
    return [*lines(COLUMNS, rows), *(f"{words}: {cells} of {len(mains)} cells" for words, cells in reached.items())], reached
