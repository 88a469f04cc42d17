"""Bounds for cells of your own: `tunegrid calibrate --grid=sst2.py` trains them and writes what a healthy run reaches.

It trains the cells that the file adds, or those of --cells, with five seeds, and writes sst2.quick.toml beside sst2.py, or
sst2.full.toml with -m full. Sessions with --grid=sst2.py apply these bounds. A bound is the mean of the seeds minus
what training noise explains; few seeds give a low bound. After a stop, the same command goes on.
"""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from tunegrid import launcher
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.gate.thresholds import OWN_CALIBRATE, bounds_file, load_bounds
from tunegrid.grid.cells import STUDY_IDS, add_file, study
from tunegrid.grid.recipes import CACHE, FULL_PROFILE, QUICK_PROFILE
from tunegrid.machine import write_whole
from tunegrid.record import Record
from tunegrid.record.checks import failed_audits
from tunegrid.runs.files import read_list
from tunegrid.terminal import say

PROFILES = {profile.id: profile for profile in (QUICK_PROFILE, FULL_PROFILE)}
RUNS = CACHE / "calibrate"
Session = Callable[[Sequence[str]], int]  # pytest's arguments, and its exit code


def session(arguments: Sequence[str]) -> int:
    """Run the suite in a process of its own, which shows how far it is."""
    return launcher.run(command(arguments))


def select_cells(grid_files: Sequence[Path], profile: str, names: str) -> tuple[str, ...]:
    """The cells of these names, or all that the files add. Raises InputError if there are none."""
    grid = study()
    for path in grid_files:
        add_file(path.resolve(), grid)
    if cells := [name.strip() for name in names.split(",") if name.strip()]:
        return tuple(dict.fromkeys(grid.cell(name, PROFILES[profile]).id for name in cells))
    if new_cells := tuple(name for name in grid.ids(PROFILES[profile]) if name not in STUDY_IDS):
        return new_cells
    other = next(name for name in PROFILES if name != profile)
    raise InputError(f"{grid_files[-1]} adds no cell of -m {profile}: write -m {other}, or name cells with --cells=ID,ID")


def train_session(path: Path, arguments: Sequence[str], run: Session = session) -> Path:
    """Save a session at this path; what passed before is not trained again. Raises InputError if the session broke off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    code = run([*arguments, "--resume", f"--benchmark-json={path}"])
    if code not in (0, 1) or not path.is_file():  # 1: a cell that misses a bound has its row
        raise InputError(f"pytest ended with exit code {code}: see its output above; the same command continues")
    return path


def by_seed(records: Sequence[Record], cells: Collection[str], seeds: Collection[int]) -> dict[int, Mapping[str, Record]]:
    """The records of each seed by cell; raises InputError if a cell did not come to its end, or failed an audit."""
    by_case = {
        (record.seeds.seed, record.cell): record for record in records if record.finished and record.seeds.confirms is None
    }
    for seed in seeds:
        for cell in cells:
            if (seed, cell) not in by_case:
                raise InputError(f"{cell} of seed {seed} did not finish: see above, then run the same command again")
            if failed := failed_audits(by_case[seed, cell].audits, by_case[seed, cell].excused):
                raise InputError(f"{cell} of seed {seed} gives no bound: {failed[0]}; fix it, then run the same command again")
    return {seed: {cell: by_case[seed, cell] for cell in cells} for seed in seeds}


def main(arguments: Sequence[str] | None = None, run: Session = session) -> int:
    """Train, write the bounds, say them; return the exit code. `run` starts the session."""
    parser = argparse.ArgumentParser(prog="tunegrid calibrate", description=__doc__)
    add = parser.add_argument
    add("--grid", type=Path, action="append", required=True, metavar="FILE.py", help="your file, as for pytest; repeatable")
    add("--cells", default="", metavar="ID,ID", help="these cells (default: all that the file adds)")
    add("-m", "--profile", choices=PROFILES, default="quick", help="their profile (default quick)")
    add("--seeds", type=int, default=5, metavar="N", help="trainings of each cell, at least 2 (default 5)")
    add("pytest_options", nargs="*", metavar="-- OPTION", help="options of pytest, as in -- --data-root=DIR -n 2")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds: one training has no standard deviation; give at least 2")
    return write_bounds(options, run)


def write_bounds(options: argparse.Namespace, run: Session) -> int:
    """Train, write the bounds, say them. Raises InputError if a cell does not exist or finish, or bounds would be lost."""
    from tunegrid.gate.bounds import Calibration, thresholds_toml  # which brings scipy

    grid, profile = options.grid[-1], options.profile
    path, cells = bounds_file(grid, profile), select_cells(options.grid, profile, options.cells)
    if others := sorted(load_bounds(path).keys() - set(cells)):
        raise InputError(f"{path} has bounds of {', '.join(others)}, which would be lost: name them in --cells, or remove it")
    files = [f"--grid={file}" for file in options.grid]
    arguments = ["-m", profile, *files, f"--cells={','.join(cells)}", f"--seeds=0-{options.seeds - 1}"]
    run_file = train_session(RUNS / f"{grid.stem}-{profile}.json", [*arguments, *options.pytest_options], run)
    calibration = Calibration(seeds=list(by_seed(read_list(run_file), cells, range(options.seeds)).values()))
    bounds = thresholds_toml(calibration, f"{OWN_CALIBRATE} --grid={grid.name}")
    write_whole(path, bounds)
    say(f"{bounds}\nwrote {path}, which sessions with --grid={grid} read")
    return 0
