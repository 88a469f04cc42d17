"""Measures bounds for your own cells: `tunegrid calibrate --grid=sst2.py` trains them and writes
the lowest scores that a healthy run may have.

It trains the cells that the file adds, or those named by --cells, with five seeds, and writes
sst2.quick.toml (with -m full, sst2.full.toml) beside sst2.py. Sessions with --grid=sst2.py apply
these bounds. A bound is the mean over the seeds minus an allowance for training noise; fewer seeds
give lower bounds. If interrupted, run the same command again to continue.
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
from tunegrid.runs.files import read_list
from tunegrid.runs.status import audit_sentences
from tunegrid.terminal import say
from tunegrid.words import count

PROFILES = {profile.id: profile for profile in (QUICK_PROFILE, FULL_PROFILE)}
RUNS = CACHE / "calibrate"
Session = Callable[[Sequence[str]], int]  # takes pytest's arguments and returns its exit code


def session(arguments: Sequence[str]) -> int:
    """Run the suite in a separate process and return its exit code."""
    return launcher.run(command(arguments))


def select_cells(grid_files: Sequence[Path], profile: str, names: str) -> tuple[str, ...]:
    """The ids of the named cells or, if `names` is empty, of all cells that the files add.

    Raises InputError if a named cell does not exist, or if the files add no cell to the profile.
    """
    grid = study()
    for path in grid_files:
        add_file(path.resolve(), grid)
    grid_profile = PROFILES[profile]
    cells = []
    for name in names.split(","):
        if name.strip():
            cells.append(grid.cell(name.strip(), grid_profile).id)
    if not cells:
        cells = [name for name in grid.ids(grid_profile) if name not in STUDY_IDS]
    if not cells:
        for sentence in grid.missing_files.values():
            raise InputError(sentence)
        [other_profile] = PROFILES.keys() - {profile}
        advice = f"write -m {other_profile}, or name cells with --cells=ID,ID"
        raise InputError(f"{grid_files[-1]} adds no cell of -m {profile}: {advice}")
    return tuple(dict.fromkeys(cells))


def train_session(path: Path, arguments: Sequence[str], run: Session = session) -> Path:
    """Run a session and save its run at `path`; cells that passed earlier are not trained again.

    Raises InputError if pytest's exit code is neither 0 nor 1, or if pytest writes no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    code = run([*arguments, "--resume", f"--benchmark-json={path}"])
    # exit code 1: a cell that misses a bound still has its row
    if code not in (0, 1) or not path.is_file():
        hint = "see its output above; the same command continues"
        raise InputError(f"pytest ended with exit code {code}: {hint}")
    return path


def by_seed(
    records: Sequence[Record],
    cells: Collection[str],
    seeds: Collection[int],
) -> Mapping[int, Mapping[str, Record]]:
    """Group the records of the given cells by seed, then by cell.

    Raises InputError if a record is missing or unfinished, or has a failed audit that is not
    excused.
    """
    finished = {}
    for record in records:
        if record.finished and record.seeds.confirms is None:
            finished[record.seeds.seed, record.cell] = record
    grids = {}
    for seed in seeds:
        grid = {}
        for cell in cells:
            if (seed, cell) not in finished:
                fault = f"{cell} of seed {seed} did not finish"
                raise InputError(f"{fault}: see above, then run the same command again")
            grid[cell] = finished[seed, cell]
            failed = audit_sentences(grid[cell])
            if failed:
                fault = f"{cell} of seed {seed} gives no bound: {failed[0]}"
                raise InputError(f"{fault}; change that, then run the same command again")
        grids[seed] = grid
    return grids


def main(arguments: Sequence[str] | None = None, run: Session = session) -> int:
    """Train the cells, write the bounds and print them; return 0. `run` starts the session.

    Raises InputError if a cell does not exist, does not finish or fails an audit, or if existing
    bounds would be lost.
    """
    parser = argparse.ArgumentParser(prog="tunegrid calibrate", description=__doc__)
    add = parser.add_argument
    add(
        "--grid",
        type=Path,
        action="append",
        required=True,
        metavar="FILE.py",
        help="your file, as for pytest; repeatable",
    )
    add(
        "--cells",
        default="",
        metavar="ID,ID",
        help="these cells (default: all that the file adds)",
    )
    add("-m", "--profile", choices=PROFILES, default="quick", help="their profile (default quick)")
    add(
        "--seeds",
        type=int,
        default=5,
        metavar="N",
        help="trainings of each cell, at least 2 (default 5)",
    )
    add(
        "pytest_options",
        nargs="*",
        metavar="-- OPTION",
        help="arguments for pytest, as in -- --data-root=DIR -n 2",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds: one training has no standard deviation; give at least 2")
    # These imports load scipy, which --help does not need
    from tunegrid.gate.bounds import Calibration, own_noise_toml, thresholds_toml

    grid = options.grid[-1]
    profile = options.profile
    path = bounds_file(grid, profile)
    cells = select_cells(options.grid, profile, options.cells)
    lost_cells = sorted(load_bounds(path).keys() - set(cells))
    if lost_cells:
        fault = f"{path} has bounds of {', '.join(lost_cells)}, which would be lost"
        raise InputError(f"{fault}: name them in --cells, or remove it")
    arguments = ["-m", profile]
    arguments += [f"--grid={file}" for file in options.grid]
    arguments += [f"--cells={','.join(cells)}", f"--seeds=0-{options.seeds - 1}"]
    arguments += options.pytest_options
    number = count(len(cells) * options.seeds, "training")
    say(f"{number}; on a terminal, the time left is shown once the first has ended", error=True)
    run_file = train_session(RUNS / f"{grid.stem}-{profile}.json", arguments, run)
    grids = by_seed(read_list(run_file), cells, range(options.seeds))
    calibration = Calibration(seeds=list(grids.values()))
    bounds = thresholds_toml(calibration, f"{OWN_CALIBRATE} --grid={grid.name}")
    bounds += own_noise_toml(calibration)
    write_whole(path, bounds)
    say(f"{bounds}\nwrote {path}, which sessions with --grid={grid} read")
    return 0
