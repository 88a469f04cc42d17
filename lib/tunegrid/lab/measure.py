"""Measure everything once: `python -m tunegrid.lab measure` trains all that bounds, noise, baseline and error rates rest on.

Stage by stage, it calls other commands, which can be run alone, too:

  bounds        20 seeds of the quick grid, more of tailed cells, moved starts, controls: quick.toml, noise.toml (calibrate)
  numerics      moved starts against unmoved ones: numerics.toml, what is rounding
  baseline      the first five of these seeds: reports/baselines/quick-cpu.json (baseline)
  power         error rates, simulated (power)
  false_alarms  40 healthy runs (false_alarms)
  zoo           five seeds of the zoo and its controls: zoo.toml (calibrate --profile zoo)
  tasks         the same of more tasks: tasks.toml (calibrate --profile tasks)

Figures go to reports/measured.json, which the pages quote. Stop it when you like: sessions of five seeds that are finished are
kept in .cache/measure, and the same command goes on. Sessions of other code or library versions are not taken.
"""

import argparse
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegrid import ROOT
from tunegrid.commands import baseline
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.lab import calibrate, false_alarms, power, tolerances
from tunegrid.lab.grid_runs import LabSession, LabSessions, folder
from tunegrid.record import to_json
from tunegrid.results.files import load, read_rows, save
from tunegrid.results.status import with_bounds
from tunegrid.results.thresholds import Bounds, load_bounds

STOPPED = 130  # exit code, as a shell gives it
ZOO, TASKS = (calibrate.CalibrationPlan(profile=name, seeds=calibrate.RULES[name].seeds) for name in ("zoo", "tasks"))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all stages share.

    Attributes:
        plan: of the quick grid.
        to: the folder below which files are written.
        runs: healthy runs of each kind.
    """

    plan: calibrate.CalibrationPlan
    sessions: LabSessions
    to: Path
    runs: int

    @property
    def thresholds(self) -> Path:
        """The folder of bounds and noise."""
        return self.to / "benchmarks" / "thresholds"

    @property
    def options(self) -> list[str]:
        """Of commands that judge by bounds and the baseline, and note their figures."""
        paths = {"--baseline": self.baseline, "--bounds": self.thresholds / "quick.toml", "--measured": self.measured}
        return [str(part) for pair in paths.items() for part in pair]

    @property
    def baseline(self) -> Path:
        """The baseline."""
        return self.to / "reports" / "baselines" / "quick-cpu.json"

    @property
    def measured(self) -> Path:
        """The figures."""
        return self.to / "reports" / "measured.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: the sessions that it needs as far as they are known, and what it does with them; returns an exit code."""

    sessions: Callable[[Work], Sequence[LabSession]]
    do: Callable[[Work], int]


def _baseline(work: Work) -> int:
    """The first session, whose five seeds the bounds were made of, held to those bounds."""
    work.sessions.train(work.plan.first[:1])
    run = folder() / "baseline.json"
    rebound(work.plan.first[0].path, run, load_bounds(work.thresholds / "quick.toml"))
    return baseline.main([str(run), str(work.baseline)])


def rebound(path: Path, to: Path, bounds: Mapping[str, Bounds]) -> None:
    """Write a run anew, its cells held to other bounds: those that were made of it, and of other runs beside it."""
    held = [(row, with_bounds(record, bounds.get(record.cell, {}))) for row, record in read_rows(path)]
    save(load(path) | {"benchmarks": [row | {"extra_info": to_json(record)} for row, record in held]}, to)


STAGES: Mapping[str, Stage] = {
    "bounds": Stage(
        sessions=lambda work: work.plan.sessions, do=lambda work: calibrate.write(work.plan, work.sessions, work.to)
    ),
    "numerics": Stage(
        sessions=lambda work: tolerances.planned(work.plan), do=lambda work: tolerances.write(work.plan, work.sessions, work.to)
    ),
    "baseline": Stage(sessions=lambda work: work.plan.first[:1], do=_baseline),
    "power": Stage(
        sessions=lambda work: [],
        do=lambda work: power.main(["--noise", str(work.thresholds / "noise.toml"), "--measured", str(work.measured)]),
    ),
    "false_alarms": Stage(
        sessions=lambda work: false_alarms.planned(-(-work.runs // false_alarms.SESSION)),
        do=lambda work: false_alarms.main(["--runs", str(work.runs), *work.options], work.sessions),
    ),
    "zoo": Stage(sessions=lambda work: ZOO.sessions, do=lambda work: calibrate.write(ZOO, work.sessions, work.to)),
    "tasks": Stage(sessions=lambda work: TASKS.sessions, do=lambda work: calibrate.write(TASKS, work.sessions, work.to)),
}


def stages_of(text: str) -> list[str]:
    """Names of stages, in their order; raises InputError for one that does not exist."""
    names = text.split(",") if text else list(STAGES)
    if unknown := [name for name in names if name not in STAGES]:
        raise InputError(f"unknown stage {unknown[0]!r}: expected some of {','.join(STAGES)}")
    return [name for name in STAGES if name in names]


def check_clean(names: Sequence[str]) -> None:
    """Raises InputError where a baseline is to be made of a commit with changes: better now than after hours."""
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False, encoding="utf-8"
    ).stdout
    if "baseline" in names and "bounds" in names and changed:
        raise InputError("the working tree has uncommitted changes, of which no baseline is made; commit or remove them first")


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; return the gravest exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tunegrid.lab measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="STAGES", help=f"some of {','.join(STAGES)} (default: all)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="healthy runs of each kind (default 20)")
    calibrate.add_plan(parser)
    options = parser.parse_args(arguments)
    try:
        names = stages_of(options.only)
        plan = calibrate.plan_of(options)
        sessions = LabSessions(workers=options.workers, fresh=options.fresh)
        work = Work(plan=plan, sessions=sessions, to=options.to, runs=options.runs)
        if options.to == ROOT and not plan.first[0].path.is_file():
            check_clean(names)
        for name in names:
            sessions.expect(STAGES[name].sessions(work))
        codes = []
        for number, name in enumerate(names, start=1):
            print(f"stage {number} of {len(names)}, {name}: {sum(sessions.waiting.values())} trainings left", flush=True)
            codes.append(STAGES[name].do(work))
        return max(codes)
    except InputError as error:
        refuse(parser, error)
    except KeyboardInterrupt:
        print(f"stopped; {sum(sessions.waiting.values())} trainings left, finished sessions are kept: run it again to go on")
        return STOPPED
