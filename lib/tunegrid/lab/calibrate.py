"""Measure the quick profile's bounds and training noise: `python -m tunegrid.lab calibrate` trains the study's cells 29 times.

It trains 20 seeds, ten more of each cell in which some training collapsed, three seeds from three more starts each that are
moved in their last digits, and the controls. It writes benchmarks/thresholds/quick.toml, what a healthy run reaches,
and noise.toml, what the gate holds a change to. Finished sessions are kept in .cache/measure and not trained again.
`--profile zoo` trains five seeds of the zoo and its controls, and writes bounds alone, to zoo.toml; `--profile tasks` does so
with the cells of more tasks.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import special

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.lab.grid_runs import GridRun, LabSession, LabSessions, OtherLabSession, fives, note
from tunegrid.record.checks import below_bounds
from tunegrid.results.bounds import CONTROL_SHARE, Calibration, RecordsByCell, evidence, scores_toml, thresholds_toml
from tunegrid.results.noise import SEEDS, NoiseKey, residuals, resolution
from tunegrid.results.thresholds import LAB_CALIBRATE, load_bounds

UNLIKELY = 0.05  # that the worst of a cell's trainings is as bad as it is, if noise were normal
ADAPTER_OFF = "adapter_off"  # a control of benchmarks/plants/controls.py


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How one grid is calibrated.

    Attributes:
        seeds: that every cell is trained with.
        noise: whether its training noise is measured, too, with more seeds of cells with a tail and with moved starts.
        control_share: no bound lies farther than this share of the way from the mean to a control.
        left_out: controls that this does not hold for.
        controls: the marks of its controls.
        controls_a_cell: about so many, for the time that is left.
    """

    seeds: int
    noise: bool
    control_share: float
    left_out: tuple[str, ...]
    controls: str
    controls_a_cell: float


RULES = {
    # A run without its adapter has learned: with so many seeds it misses a bound that noise alone decides.
    "quick": Rules(
        seeds=20,
        noise=True,
        control_share=CONTROL_SHARE,
        left_out=(ADAPTER_OFF,),
        controls="controls and not zoo and not tasks",
        controls_a_cell=11 / 3,
    ),
    # Five seeds of many methods leave more noise than ten of the study's three.
    "zoo": Rules(seeds=5, noise=False, control_share=2 / 3, left_out=(), controls="controls and zoo", controls_a_cell=3),
    "tasks": Rules(
        seeds=5, noise=False, control_share=2 / 3, left_out=(), controls="controls and tasks", controls_a_cell=11 / 3
    ),
}


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """What is trained.

    Attributes:
        cells: these alone; none takes all.
        more_seeds: of cells with a tail.
        perturbed, draws: seeds that are trained from moved starts, 0 and up, and how often each.
    """

    profile: str = "quick"
    seeds: int = 20
    more_seeds: int = 10
    perturbed: int = 3
    draws: int = 3
    cells: tuple[str, ...] = ()

    @property
    def rules(self) -> Rules:
        """Those of its grid."""
        return RULES[self.profile]

    @property
    def first(self) -> list[GridRun]:
        """The seeds that every cell has."""
        return fives(range(self.seeds), profile=self.profile, only=self.cells)

    def tails(self, cells: Sequence[str]) -> list[GridRun]:
        """More seeds of these cells."""
        seeds = range(self.seeds, self.seeds + self.more_seeds)
        return fives(seeds, profile=self.profile, only=tuple(cells)) if cells else []

    @property
    def moved(self) -> list[GridRun]:
        """Perturbed runs; none where no noise is measured."""
        draws = self.draws if self.rules.noise and self.perturbed else 0
        return [GridRun(seeds=range(self.perturbed), draw=1 + draw, only=self.cells) for draw in range(draws)]

    @property
    def controls(self) -> OtherLabSession:
        """Runs that cannot learn."""
        cells = self.first[0].cells
        options = ["-m", self.rules.controls]
        options += ["-k", " or ".join(f"{cell}]" for cell in cells)] if self.cells else []
        run = self.first[0].name.partition("-seeds")[2].partition("-cells")[2]
        label = f"{self.profile}-controls{run}"
        return OtherLabSession(label=label, options=tuple(options), count=round(self.rules.controls_a_cell * len(cells)))

    @property
    def sessions(self) -> list[LabSession]:
        """All but those that the first seeds decide on."""
        return [*self.first, *self.moved, self.controls]


def train(plan: CalibrationPlan, sessions: LabSessions) -> Calibration:
    """Train what is missing."""
    sessions.train(plan.first)
    first = calibration([(run, run.grids()) for run in plan.first], {})
    heavy = with_tails(first) if plan.rules.noise else []
    print(f"cells with a tail, which get {plan.more_seeds} seeds more: {', '.join(heavy) or 'none'}", flush=True)
    grids = [*plan.first, *plan.tails(heavy), *plan.moved]
    sessions.train([*grids[len(plan.first) :], plan.controls])
    controls = read_controls(plan.controls.path, plan.rules.left_out)
    return calibration([(run, run.grids()) for run in grids], controls, plan.rules.control_share)


def with_tails(measured: Calibration) -> list[str]:
    """The cells of which some training is worse than one of so many normal draws would be, at 5 %: they need more seeds."""
    rows, first = measured.rows(), measured.seeds[0]
    heavy = {
        cell
        for (cell, metric), groups in measured.noise.scores[SEEDS].items()
        if len(far := residuals(groups, resolution(rows[first[cell].task], metric)))
        and special.ndtr(far.min()) < UNLIKELY / len(far)
    }
    return [cell for cell in first if cell in heavy]


def calibration(
    runs: Sequence[tuple[GridRun, Mapping[int, RecordsByCell]]], controls: dict[NoiseKey, float], share: float = CONTROL_SHARE
) -> Calibration:
    """Runs by what they are for: a perturbed seed's run without a draw is one more draw."""
    drawn = {seed for run, _ in runs if run.draw is not None for seed in run.seeds}
    perturbed = {seed: [grids[seed] for _, grids in runs if seed in grids] for seed in sorted(drawn)}
    seeds = [grid for run, grids in runs if run.draw is None for grid in grids.values()]
    return Calibration(seeds=seeds, perturbed=perturbed, controls=controls, control_share=share)


def read_controls(path: Path, left_out: Sequence[str] = ()) -> dict[NoiseKey, float]:
    """The best score that a control reached, by cell and score, some controls left out.

    Raises InputError where the file has no controls.
    """
    best: dict[NoiseKey, float] = {}
    try:
        rows = [row["extra_info"] for row in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]]
        for row in (row for row in rows if row["plant"] not in left_out):
            for metric, score in row["scores"].items():
                best[row["of"], metric] = max(score or 0.0, best.get((row["of"], metric), 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        advice = f"`pytest -m controls --benchmark-json={path}` writes it"
        raise InputError(f"{path} holds no controls ({type(error).__name__}: {error}); {advice}") from None
    return best


def noise_toml(calibration: Calibration) -> str:
    """The file of training noise: deviations as measured, and their scores; they are pooled when they are read."""
    noise = calibration.noise
    lines = [
        f"# Written by `{LAB_CALIBRATE}`. Standard deviations of scores, in points, with degrees of freedom:",
        "# `seeds` between runs of different seeds, `perturbed` between runs of one seed whose starts differ in last digits.",
        "# `scores`: one list for each group of runs that differ by chance alone.",
        *evidence(calibration),
        f"perturbed_seeds = {list(calibration.perturbed)}",
        f"runs_a_perturbed_seed = {[len(grids) for grids in calibration.perturbed.values()]}",
        "",
        "# Test rows by task.",
        "[rows]",
        *(f"{task} = {rows}" for task, rows in noise.rows.items()),
    ]
    for key in calibration.tested():
        lines += ["", f"[cells.{'.'.join(key)}]"]
        for kind, deviations in noise.measured.items():
            if own := deviations.get(key):
                groups = ", ".join(f"[{scores_toml(group)}]" for group in noise.scores[kind][key])
                lines.append(f"{kind} = {{ sd = {own.sd:.3f}, df = {own.df:.0f}, scores = [{groups}] }}")
    return "\n".join(lines) + "\n"


def blunt(measured: Calibration) -> list[str]:
    """A sentence for every bound that a healthy run may miss, because a lower one would lie near a control."""
    return [
        f"blunt: {cell} {metric} {bound.minimum:.1f}; a healthy run needs {bound.healthy:.1f}, less than two thirds of the way "
        f"from the control's {measured.controls[cell, metric]:.1f}; lower its training noise"
        for (cell, metric), bound in measured.bounds().items()
        if bound.blunt
    ]


def held(controls: Path, path: Path) -> dict[str, int]:
    """How many controls there are, and how many miss a bound of this file."""
    bounds = load_bounds(path)
    records = [row["extra_info"] for row in json.loads(controls.read_text(encoding="utf-8"))["benchmarks"]]
    return {"controls": len(records), "missed": sum(bool(below_bounds(row["scores"], bounds[row["of"]])) for row in records)}


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of what is trained, and where its files go; `measure` has them, too."""
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1, at least 2 (default 20; of zoo and tasks 5)")
    parser.add_argument("--more-seeds", type=int, default=10, metavar="N", help="more seeds of cells with a tail (default 10)")
    parser.add_argument("--perturbed-seeds", type=int, default=3, metavar="N", help="seeds with perturbed runs (default 3)")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="perturbed runs of each of them (default 3)")
    parser.add_argument("--cells", default="", metavar="IDS", help="these cells alone, to try it; needs --to")
    parser.add_argument("--to", type=Path, default=ROOT, metavar="DIR", help="writes below this folder (default: here)")
    parser.add_argument("--workers", default="auto", metavar="N", help="processes (default: one per core)")
    parser.add_argument("--fresh", action="store_true", help="train everything anew, also sessions that are kept")


def plan_of(options: argparse.Namespace, profile: str = "quick") -> CalibrationPlan:
    """What these options ask for; raises InputError where no noise could be told from it."""
    seeds = options.seeds or RULES[profile].seeds
    if seeds < 2 or options.perturbed_seeds > seeds:
        raise InputError("a standard deviation needs at least 2 seeds, and every perturbed seed is one of them")
    return CalibrationPlan(
        profile=profile,
        seeds=seeds,
        more_seeds=options.more_seeds,
        perturbed=options.perturbed_seeds,
        draws=options.draws,
        cells=cells_of(options.cells, options.to),
    )


def write(plan: CalibrationPlan, sessions: LabSessions, to: Path) -> int:
    """Train, write below a folder, say which bounds are blunt; return the exit code."""
    measured = train(plan, sessions)
    texts = {f"{plan.profile}.toml": thresholds_toml(measured)}
    texts |= {"noise.toml": noise_toml(measured)} if plan.rules.noise else {}
    noted, thresholds = to / "reports" / "measured.json", to / "benchmarks" / "thresholds"
    thresholds.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (thresholds / name).write_text(text, encoding="utf-8")
    figures = held(plan.controls.path, thresholds / f"{plan.profile}.toml")
    note(noted, f"controls {plan.profile}", figures)
    note(noted, f"calibrate {plan.profile}", counts(measured))
    print(*blunt(measured), f"{figures['missed']} of {figures['controls']} controls miss a bound", sep="\n")
    print(f"wrote {' and '.join(texts)} from {', '.join(f'{name}: {count}' for name, count in counts(measured).items())}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Calibrate what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab calibrate", description=__doc__)
    parser.add_argument("--profile", choices=RULES, default="quick", help="which grid (default quick)")
    add_plan(parser)
    options = parser.parse_args(arguments)
    try:
        plan = plan_of(options, options.profile)
        return write(plan, LabSessions(workers=options.workers, fresh=options.fresh), options.to)
    except InputError as error:
        refuse(parser, error)


def cells_of(text: str, to: Path) -> tuple[str, ...]:
    """Cells, divided by commas; raises InputError for unknown ones, and where they would replace the files of all."""
    cells = tuple(filter(None, map(str.strip, text.split(","))))
    if unknown := sorted(set(cells).difference(STUDY_IDS)):
        raise InputError(f"--cells names no cells of the study: {', '.join(unknown)}")
    if cells and to.resolve() == ROOT:
        raise InputError("--cells would replace the files of all cells; give --to DIR")
    return cells


def counts(measured: Calibration) -> dict[str, Any]:
    """Seeds of all cells, of those with a tail, and the blunt bounds."""
    cells = measured.seeds[0]
    seeds = {cell: sum(cell in grid for grid in measured.seeds) for cell in cells}
    return {
        "seeds": min(seeds.values()),
        "cells_with_a_tail": [cell for cell, count in seeds.items() if count > min(seeds.values())],
        "most_seeds": max(seeds.values()),
        "blunt": sorted({cell for (cell, _), bound in measured.bounds().items() if bound.blunt}),
    }
