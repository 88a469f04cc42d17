"""Say what is rounding, a stage of `python -m tunegrid.lab measure`: from sessions of the bounds, thresholds/numerics.toml.

Each seed that the bounds stage trains from moved starts, too, makes pairs: all figures of numerics, of all cells, without any
training of its own. What the optimizer itself rounds, and what other masks of dropout do, `pytest -m perturbed` trains for it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.lab.calibrate import CalibrationPlan
from tunegrid.lab.grid_runs import GridRun, LabSession, LabSessions, OtherLabSession
from tunegrid.lab.measured import note
from tunegrid.lab.tolerances import Apart, ToleranceEvidence, apart, blunt, numerics_toml, of_optimizer

OPTIMIZER, MASKS = "another_implementation", "one_more"  # words of tests in benchmarks/test_perturbed.py
COUNT = 2 / 3  # a session takes about as long as so many trainings per cell: ten updates, twice; for the time that is left


def unmoved(plan: CalibrationPlan) -> list[GridRun]:
    """Runs of the seeds that are trained from moved starts, too."""
    return [run for run in plan.first if run.seeds[0] < plan.perturbed]


def optimizers(plan: CalibrationPlan) -> dict[int, OtherLabSession]:
    """By seed, first updates by another implementation of the optimizer, and trainings with other masks of dropout."""
    runs = {seed: GridRun(seeds=[seed], only=plan.cells) for seed in range(plan.perturbed)}
    cells = f" and ({' or '.join(f'{cell}]' for cell in plan.cells)})" if plan.cells else ""
    options = ("-m", "perturbed", "-k", f"({OPTIMIZER} or {MASKS}){cells}", "--seeds")
    return {
        seed: OtherLabSession(label=f"{run.name}-optimizer", options=(*options, str(seed)), count=round(COUNT * len(run.cells)))
        for seed, run in runs.items()
    }


def planned(plan: CalibrationPlan) -> list[LabSession]:
    """All that the tolerances rest on."""
    return [*unmoved(plan), *plan.moved, *optimizers(plan).values()]


def measured(plan: CalibrationPlan, sessions: LabSessions) -> ToleranceEvidence:
    """Train what is missing; the evidence. Raises InputError where no start is moved."""
    if not plan.moved:
        raise InputError("tolerances rest on moved starts: give --perturbed-seeds and --draws of at least 1")
    sessions.train(planned(plan))
    before = {seed: grid for run in unmoved(plan) for seed, grid in run.grids().items()}
    moved = [(seed, grid) for run in plan.moved for seed, grid in run.grids().items()]
    rows = [row for seed, session in optimizers(plan).items() for row in perturbed(session.path, seed, plan.first[0].cells)]
    return ToleranceEvidence(
        pairs=[apart(before[seed][cell], new) for seed, grid in moved for cell, new in grid.items()],
        optimizers=[of_optimizer(found) for test, found in rows if OPTIMIZER in test],
        masks=[found for test, found in rows if MASKS in test],
        seeds=range(plan.perturbed),
        draws=[run.draw for run in plan.moved if run.draw is not None],
        first=next(iter(before[0].values())),
    )


def perturbed(path: Path, seed: int, cells: tuple[str, ...]) -> Iterator[tuple[str, Apart]]:
    """Each row's test, and how far its cell's trainings lie apart; raises InputError where a cell has no such row."""
    rows = [(row["name"], row["extra_info"]) for row in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]]
    there = {info.get("of") for test, info in rows if OPTIMIZER in test}
    if missing := [cell for cell in cells if cell not in there]:
        raise InputError(f"{missing[0]} of seed {seed} did not finish in {path.name}; remove {path} and run the command again")
    for test, info in rows:
        figures = {name: value for name, value in info.items() if name not in ("of", "kind")}
        yield test, Apart(cell=info["of"], kind=info["kind"], figures=figures)


def write(plan: CalibrationPlan, sessions: LabSessions, to: Path) -> int:
    """Train, write, say which tolerances are blunt; return the exit code."""
    evidence = measured(plan, sessions)
    path = to / "benchmarks" / "thresholds" / "numerics.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(numerics_toml(evidence), encoding="utf-8")
    note(to / "reports" / "measured.json", "numerics", evidence.figures())
    print(*blunt(evidence), f"wrote {path} from {len(evidence.pairs)} pairs", sep="\n")
    return 0
