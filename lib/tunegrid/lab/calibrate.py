"""Measure bounds, training noise and tolerances: `python -m tunegrid.lab calibrate` trains the study's quick cells 49 times.

It trains seeds 10000 to 10039, which nothing else uses, three of them from three more starts each that are moved in their last
digits, and the controls. It writes to benchmarks/thresholds: quick.toml, what a healthy run reaches; noise.toml, what the gate
holds a change to; numerics.toml, what is rounding. `--profile zoo` or `tasks` trains five seeds and controls, and writes bounds
alone. The same command goes on where it was stopped: `--resume` of pytest takes what passed. `--runs` takes saved runs of these
seeds and starts, and trains nothing: of two runs of one seed and start the last file's counts. Without moved starts there, say
`--moved-seeds 0 --write bounds,noise`.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.commands.calibrate import by_seed, train_session
from tunegrid.commands.cli import refuse
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

RUNS = CACHE / "lab"
Control = Mapping[str, Any]  # its `plant`, the cell that it is `of`, and the `scores` that it reached
SEEDS = {"quick": range(10_000, 10_040), "zoo": range(5), "tasks": range(5)}  # of quick, in whose view no recipe was chosen
CONTROLS = {"quick": "controls and not zoo and not tasks", "zoo": "controls and zoo", "tasks": "controls and tasks"}
QUICK = "quick"  # so many seeds tell healthy runs from controls; few seeds of many methods leave bounds that controls narrow


# Training


def calibration(options: argparse.Namespace) -> tuple[Calibration, Sequence[Control]]:
    """The runs that the options ask for, and all controls; what is not known is trained."""
    seeds, is_quick = options.seeds or SEEDS[options.profile], options.profile == QUICK
    runs = run_grids(options, seeds)
    starts = seeds[: options.moved_seeds] if is_quick and options.draws else seeds[:0]
    moved_runs = [run_grids(options, starts, draw) for draw in range(1, options.draws + 1)] if starts else []
    perturbed = {seed: [runs[seed], *(grids[seed] for grids in moved_runs)] for seed in starts}
    controls = get_controls(options)
    best = {} if is_quick else best_controls(controls)
    return Calibration(seeds=[*runs.values()], perturbed=perturbed, controls=best), controls


def run_grids(options: argparse.Namespace, seeds: range, draw: int | None = None) -> dict[int, RecordsByCell]:
    """The grid's records by seed, from starts that this draw moved, or unmoved ones."""
    if options.runs:
        records = [record for path in options.runs for record in saved(path) if record.seeds.perturbation == draw]
    else:
        words = f"{seeds[0]}-{seeds[-1]}"
        arguments = ["-m", options.profile, "-n", options.workers, f"--seeds={words}"]
        arguments += [f"--set=perturbation={draw}"] if draw else []
        name = f"{options.profile}-{words}{f'-perturbation={draw}' if draw else ''}"
        records = saved(train_session(RUNS / f"{name}.json", arguments))
    return by_seed(records, sorted({record.cell for record in records}, key=study_place), seeds)


@cache
def saved(path: Path) -> list[Record]:
    """A run's records, whose files are kept in this machine's store: of two that are compared, each is of another run."""
    records = read_list(path)
    examples.keep_contents(examples.contents(examples.file_names(records), path))
    return records


def get_controls(options: argparse.Namespace) -> list[Control]:
    """What controls reached, trained unless there is a file, or not needed; raises InputError if the file holds none."""
    if options.profile == QUICK and options.runs and not options.controls:
        return []
    arguments = ["-m", CONTROLS[options.profile], "-n", options.workers]
    path: Path = options.controls or train_session(RUNS / f"{options.profile}-controls.json", arguments)
    try:
        rows = [row["extra_info"] for row in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]]
        return [{"plant": row["plant"], "of": row["of"], "scores": dict(row["scores"])} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        advice = f"`pytest -m controls --benchmark-json={path}` writes it"
        raise InputError(f"{path} holds no controls ({type(error).__name__}: {error}); {advice}") from None


def best_controls(controls: Iterable[Control]) -> dict[NoiseKey, float]:
    """The best score that any of them reached, by cell and score."""
    best: dict[NoiseKey, float] = {}
    for row in controls:
        for metric, score in row["scores"].items():
            best[row["of"], metric] = max(score or 0.0, best.get((row["of"], metric), 0.0))
    return best


# Writing


def noise_toml(measured: Calibration) -> str:
    """The file of training noise: deviations as measured, and their scores; they are pooled when they are read."""
    noise = measured.noise
    lines = [
        f"# Written by `{LAB_CALIBRATE}`. Standard deviations of scores, in points, with degrees of freedom:",
        "# `seeds` between runs of different seeds, `perturbed` between runs of one seed whose starts differ in last digits.",
        "# `scores`: one list for each group of runs that differ by chance alone.",
        *evidence(measured),
        f"perturbed_seeds = {list(measured.perturbed)}",
        f"runs_a_perturbed_seed = {[len(grids) for grids in measured.perturbed.values()]}",
        "",
        "# Test rows by task.",
        "[rows]",
        *(f"{task} = {rows}" for task, rows in noise.rows.items()),
    ]
    for key in measured.bound_keys():
        lines += ["", f"[cells.{'.'.join(key)}]"]
        for kind, scores in noise.scores.items():
            if spread := deviation(scores[key]):
                groups = [f"[{', '.join(f'{score:.2f}' for score in group)}]" for group in scores[key]]
                lines.append(f"{kind} = {{ sd = {spread.sd:.3f}, df = {spread.df:.0f}, scores = [{', '.join(groups)}] }}")
    return "\n".join(lines) + "\n"


FILES: Mapping[str, Callable[[Calibration], str]] = {
    "bounds": thresholds_toml,
    "noise": noise_toml,
    "numerics": lambda measured: numerics_toml(measured.perturbed),
}


def remark(measured: Calibration, controls: Sequence[Control]) -> str:
    """How many controls miss a bound."""
    minimums: dict[str, dict[str, float]] = {}
    for (cell, metric), minimum in measured.bounds().items():
        minimums.setdefault(cell, {})[metric] = minimum
    miss_count = sum(bool(below_bounds(row["scores"], minimums.get(row["of"], {}))) for row in controls)
    return f"{miss_count} of {len(controls)} controls miss a bound"


def parse_seeds(text: str) -> range:
    """As in 10000-10039; a standard deviation needs two."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of at least 2 seeds, as 0-4 is")
    return range(int(first), int(last) + 1)


def main(arguments: list[str] | None = None) -> int:
    """Train, write below a folder, say what controls miss; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab calibrate", description=__doc__)
    parser.add_argument("--profile", choices=SEEDS, default=QUICK, help="which grid (default quick)")
    parser.add_argument("--seeds", type=parse_seeds, metavar="N-M", help="default 10000-10039; zoo and tasks: 0-4")
    parser.add_argument("--moved-seeds", type=int, default=3, metavar="N", help="first seeds that get moved starts (default 3)")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="moved starts per such seed (default 3)")
    parser.add_argument("--controls", type=Path, metavar="FILE", help="saved controls (default: trains them)")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="FILE", help="saved runs, in place of training")
    parser.add_argument("--write", default="", metavar="KINDS", help="some of bounds,noise,numerics (default: all it measures)")
    parser.add_argument("--to", type=Path, default=ROOT, metavar="DIR", help="writes below this folder (default: here)")
    parser.add_argument("-n", dest="workers", default="auto", metavar="N", help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    all_kinds = FILES if options.profile == QUICK else ("bounds",)
    kinds = options.write.split(",") if options.write else all_kinds
    try:
        if unknown_kinds := sorted(set(kinds).difference(all_kinds)):
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
    except InputError as error:
        refuse(parser, error)
