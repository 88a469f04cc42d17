"""Bounds for cells of your own: `tunegrid calibrate --grid=sst2.py` trains them and writes what a healthy run reaches.

It trains the cells that the file adds, or those of --cells, with five seeds, and writes sst2.quick.toml beside sst2.py, or
sst2.full.toml with -m full. Sessions with --grid=sst2.py hold the cells to these bounds. A bound is the mean of the seeds minus
what training noise explains; few seeds leave it wide. The same command goes on where it was stopped.
"""

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean

from tunegrid import launcher
from tunegrid.commands.cli import refuse
from tunegrid.commands.run import command
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS, add_from, study
from tunegrid.grid.recipes import CACHE, FULL_PROFILE, QUICK_PROFILE
from tunegrid.machine import write_whole
from tunegrid.record import Record
from tunegrid.results.bounds import Calibration, RecordsByCell, thresholds_toml
from tunegrid.results.files import read_list
from tunegrid.results.thresholds import OWN_CALIBRATE, bounds_file, load_bounds
from tunegrid.terminal import say

PROFILES = {profile.id: profile for profile in (QUICK_PROFILE, FULL_PROFILE)}
RUNS = CACHE / "calibrate"
ALL_RAN = (0, 1)  # exit codes of pytest; a cell that misses a bound has its row
Session = Callable[[Sequence[str]], int]  # pytest's arguments, and its exit code


def session(arguments: Sequence[str]) -> int:
    """Run the suite in a process of its own, which shows how far it is."""
    return launcher.run(command(arguments))


def cells_of(grid_file: Path, profile: str, named: str) -> tuple[str, ...]:
    """The cells to calibrate: those that are named, or all that the file adds. Raises InputError if there are none."""
    grid = study()
    add_from(grid_file.resolve(), grid)
    if cells := [name.strip() for name in named.split(",") if name.strip()]:
        return tuple(dict.fromkeys(grid.cell(name, PROFILES[profile]).id for name in cells))
    added = tuple(name for name in grid.ids(PROFILES[profile]) if name not in STUDY_IDS)
    if not added:
        other = next(name for name in PROFILES if name != profile)
        raise InputError(f"{grid_file} adds no cell of -m {profile}: write -m {other}, or name cells with --cells=ID,ID")
    return added


def trained(path: Path, arguments: Sequence[str], run: Session = session) -> Path:
    """Save a session at this path; what passed before is not trained again. Raises InputError if the session broke off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    code = run([*arguments, "--resume", f"--benchmark-json={path}"])
    if code not in ALL_RAN or not path.is_file():
        raise InputError(f"pytest ended with exit code {code}: what it said stands above; the same command goes on")
    return path


def by_seed(records: Sequence[Record], cells: Collection[str], seeds: Collection[int]) -> dict[int, RecordsByCell]:
    """The records of each seed by cell; raises InputError if a cell did not come to its end."""
    finished = {(record.seeds.seed, record.cell): record for record in records if record.finished}
    for seed in seeds:
        for cell in cells:
            if (seed, cell) not in finished:
                raise InputError(f"{cell} of seed {seed} did not come to its end: see above, and run the same command again")
    return {seed: {cell: finished[seed, cell] for cell in cells} for seed in seeds}


def seed_count(text: str) -> int:
    """How many seeds: at least two, without which no deviation is known."""
    if not text.isascii() or not text.isdigit() or not 2 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 2 to 100")
    return int(text)


def main(arguments: Sequence[str] | None = None, run: Session = session) -> int:
    """Train, write the bounds, say them; return the exit code. `run` starts the session."""
    parser = argparse.ArgumentParser(prog="tunegrid calibrate", description=__doc__)
    parser.add_argument("--grid", type=Path, required=True, metavar="FILE.py", help="your file, as for pytest")
    parser.add_argument("--cells", default="", metavar="ID,ID", help="these cells (default: all that the file adds)")
    parser.add_argument("-m", "--profile", choices=PROFILES, default="quick", help="at which profile (default quick)")
    parser.add_argument("--seeds", type=seed_count, default=5, metavar="N", help="trainings of each cell (default 5)")
    parser.add_argument("pytest_options", nargs="*", metavar="-- OPTION", help="of pytest, as in -- --data-root=DIR -n 2")
    options = parser.parse_args(arguments)
    path, runs = bounds_file(options.grid, options.profile), RUNS / f"{options.grid.stem}-{options.profile}.json"
    try:
        cells = cells_of(options.grid, options.profile, options.cells)
        if others := sorted(load_bounds(path).keys() - set(cells)):
            lost = f"{path} has bounds of {', '.join(others)}, which would be lost"
            raise InputError(f"{lost}: name them in --cells, too, or remove it")
        selection = [f"--grid={options.grid}", f"--cells={','.join(cells)}", f"--seeds=0-{options.seeds - 1}"]
        saved = trained(runs, ["-m", options.profile, *selection, *options.pytest_options], run)
        measured = Calibration(seeds=list(by_seed(read_list(saved), cells, range(options.seeds)).values()))
        write_whole(path, thresholds_toml(measured, f"{OWN_CALIBRATE} --grid={options.grid.name}"))
    except InputError as error:
        refuse(parser, error)
    for (cell, metric), bound in measured.bounds().items():
        scores = measured.scores(cell, metric)
        seen = f"mean {fmean(scores):.1f}, lowest {min(scores):.1f} of {len(scores)} seeds"
        say(f"{cell} {metric}: at least {bound:.1f} ({seen})")
    say(f"wrote {path}, which sessions with --grid={options.grid} read")
    return 0
