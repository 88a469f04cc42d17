"""Measure bounds, training noise and tolerances: `python -m tunegrid.lab calibrate` trains the
study's quick cells 49 times.

It trains each cell with seeds 10000 to 10039, which nothing else uses. It repeats the first three
seeds from three moved starts each, in which the weights differ in the last digits, and trains the
controls, which cannot learn. It writes three files to benchmarks/thresholds: quick.toml, the scores
that a healthy run reaches; noise.toml, the training noise that the gate allows for; and
numerics.toml, the differences that count as rounding. `--profile zoo` or `tasks` trains five seeds
and controls, and writes only bounds. If interrupted, run the same command again to continue:
pytest's `--resume` keeps the cells that passed. `--runs` reads saved runs instead of training these
seeds and starts; if two files hold the same seed and start, the last one wins. If there are no runs
from moved starts, add `--moved-seeds 0 --write bounds,noise`.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.commands.calibrate import by_seed, train_session
from tunegrid.errors import InputError
from tunegrid.gate.bounds import Calibration, RecordsByCell, evidence, thresholds_toml
from tunegrid.gate.noise import NoiseKey, deviation
from tunegrid.gate.thresholds import LAB_CALIBRATE
from tunegrid.grid.cells import study_place
from tunegrid.grid.recipes import CACHE
from tunegrid.lab.tolerances import numerics_toml
from tunegrid.machine import write_whole
from tunegrid.record import Record
from tunegrid.record.checks import below_bounds
from tunegrid.runs import examples
from tunegrid.runs.files import read_list

LAB_RUNS = CACHE / "lab"
Control = Mapping[str, Any]  # `of` (its cell) and `scores`
# No recipe was tuned on quick's seeds, and they are numerous enough to separate healthy runs from
# controls. The other profiles have few seeds and many methods, so controls narrow their bounds.
QUICK = "quick"
PROFILE_SEEDS = {QUICK: range(10_000, 10_040), "zoo": range(5), "tasks": range(5)}
CONTROLS = {
    QUICK: "controls and not zoo and not tasks",
    "zoo": "controls and zoo",
    "tasks": "controls and tasks",
}


# Training runs


def calibration(options: argparse.Namespace) -> tuple[Calibration, Sequence[Control]]:
    """Train or read the runs that the options ask for; return the calibration and the controls."""
    is_quick = options.profile == QUICK
    seeds = options.seeds or PROFILE_SEEDS[options.profile]
    runs = run_grids(options, seeds)
    perturbed: dict[int, list[RecordsByCell]] = {}
    starts = seeds[: options.moved_seeds]
    if is_quick and options.draws and starts:
        perturbed = {seed: [runs[seed]] for seed in starts}
        for draw in range(1, options.draws + 1):
            for seed, grid in run_grids(options, starts, draw).items():
                perturbed[seed].append(grid)
    controls = get_controls(options)
    best = {} if is_quick else best_controls(controls)
    return Calibration(seeds=[*runs.values()], perturbed=perturbed, controls=best), controls


def run_grids(
    options: argparse.Namespace,
    seeds: range,
    draw: int | None = None,
) -> Mapping[int, RecordsByCell]:
    """Train the grid or read its saved runs; return its records by seed.

    `draw` is the number of a start with moved weights, or None for the usual start.
    """
    records: list[Record] = []
    if options.runs:
        for path in options.runs:
            records += [record for record in saved(path) if record.seeds.perturbation == draw]
    else:
        words = f"{seeds[0]}-{seeds[-1]}"
        name = f"{options.profile}-{words}"
        arguments = ["-m", options.profile, "-n", options.workers, f"--seeds={words}"]
        if draw:
            arguments.append(f"--set=perturbation={draw}")
            name += f"-perturbation={draw}"
        records = saved(train_session(LAB_RUNS / f"{name}.json", arguments))
    cells = sorted({record.cell for record in records}, key=study_place)
    return by_seed(records, cells, seeds)


@cache
def saved(path: Path) -> list[Record]:
    """Read a run's records and copy their files to this machine's store, for comparisons."""
    records = read_list(path)
    examples.keep_contents(examples.contents(examples.file_names(records), path))
    return records


def get_controls(options: argparse.Namespace) -> Sequence[Control]:
    """Read the controls from the --controls file, or train them if none is given.

    Saved quick runs get no controls unless --controls is given. Raises InputError if the file
    cannot be read as a run of controls.
    """
    if options.profile == QUICK and options.runs and not options.controls:
        return []
    path: Path = options.controls
    if not path:
        arguments = ["-m", CONTROLS[options.profile], "-n", options.workers]
        path = train_session(LAB_RUNS / f"{options.profile}-controls.json", arguments)
    controls = []
    try:
        for benchmark in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]:
            row = benchmark["extra_info"]
            controls.append({"of": row["of"], "scores": dict(row["scores"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"{path} holds no controls ({type(error).__name__}: {error})"
        advice = f"`pytest -m controls --benchmark-json={path}` writes it"
        raise InputError(f"{fault}; {advice}") from None
    return controls


def best_controls(controls: Iterable[Control]) -> dict[NoiseKey, float]:
    """The highest score that a control reached, by cell and score name."""
    best: dict[NoiseKey, float] = {}
    for row in controls:
        for metric, score in row["scores"].items():
            key = row["of"], metric
            best[key] = max(score or 0.0, best.get(key, 0.0))
    return best


# Writing files


def noise_toml(measured: Calibration) -> str:
    """The text of noise.toml: scores, and their standard deviations for human readers."""
    noise = measured.noise
    run_counts = [len(grids) for grids in measured.perturbed.values()]
    lines = [
        f"# Written by `{LAB_CALIBRATE}`. "
        "Standard deviations of scores, in points, with degrees of freedom:",
        "# `seeds` between runs of different seeds, "
        "`perturbed` between runs of one seed whose starts differ in last digits.",
        "# `scores`: one list for each group of runs that differ by chance alone.",
    ]
    lines += evidence(measured)
    lines += [
        f"perturbed_seeds = {list(measured.perturbed)}",
        f"runs_a_perturbed_seed = {run_counts}",
        "",
        "# Test rows by task.",
        "[rows]",
    ]
    lines += [f"{task} = {rows}" for task, rows in noise.rows.items()]
    for key in measured.bound_keys():
        lines += ["", f"[cells.{'.'.join(key)}]"]
        for kind, scores in noise.scores.items():
            spread = deviation(scores[key])
            if spread:
                groups = ", ".join(map(_points, scores[key]))
                figures = f"sd = {spread.sd:.3f}, df = {spread.df:.0f}, scores = [{groups}]"
                lines.append(f"{kind} = {{ {figures} }}")
    return "\n".join(lines) + "\n"


def _points(scores: Iterable[float]) -> str:
    points = [f"{score:.2f}" for score in scores]
    return f"[{', '.join(points)}]"


FILES: Mapping[str, Callable[[Calibration], str]] = {
    "bounds": thresholds_toml,
    "noise": noise_toml,
    "numerics": lambda measured: numerics_toml(measured.perturbed),
}


def remark(measured: Calibration, controls: Sequence[Control]) -> str:
    """A sentence that says how many controls miss a bound."""
    minimums: dict[str, dict[str, float]] = {}
    for (cell, metric), minimum in measured.bounds().items():
        minimums.setdefault(cell, {})[metric] = minimum
    miss_count = 0
    for row in controls:
        miss_count += bool(below_bounds(row["scores"], minimums.get(row["of"], {})))
    return f"{miss_count} of {len(controls)} controls miss a bound"


def parse_seeds(text: str) -> range:
    """Parse a range of at least two seeds, such as "10000-10039"."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of at least 2 seeds, as 0-4 is")
    return range(int(first), int(last) + 1)


def main(arguments: list[str] | None = None) -> int:
    """Calibrate, write the files and print how many controls miss a bound; return 0."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab calibrate", description=__doc__)
    add = parser.add_argument
    add("--profile", choices=PROFILE_SEEDS, default=QUICK, help="which grid (default quick)")
    add(
        "--seeds",
        type=parse_seeds,
        metavar="N-M",
        help="default 10000-10039; zoo and tasks: 0-4",
    )
    add(
        "--moved-seeds",
        type=int,
        default=3,
        metavar="N",
        help="first seeds that get moved starts (default 3)",
    )
    add("--draws", type=int, default=3, metavar="N", help="moved starts per such seed (default 3)")
    add("--controls", type=Path, metavar="FILE", help="saved controls (default: trains them)")
    add(
        "--runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="saved runs, in place of training",
    )
    add(
        "--write",
        default="",
        metavar="KINDS",
        help="some of bounds,noise,numerics (default: all it measures)",
    )
    add(
        "--to",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="writes below this folder (default: here)",
    )
    add("-n", dest="workers", default="auto", metavar="N", help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    all_kinds = list(FILES) if options.profile == QUICK else ["bounds"]
    kinds = options.write.split(",") if options.write else all_kinds
    unknown_kinds = sorted(set(kinds).difference(all_kinds))
    if unknown_kinds:
        raise InputError(f"--profile {options.profile} writes no {unknown_kinds[0]}")
    measured, controls = calibration(options)
    for kind in kinds:
        name = options.profile if kind == "bounds" else kind
        path = options.to / "benchmarks" / "thresholds" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, FILES[kind](measured))
        print(f"wrote {path}")
    print(remark(measured, controls) if controls else "no controls were given")
    return 0
