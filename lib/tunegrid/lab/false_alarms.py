"""Does the suite cry wolf? `python -m tunegrid.lab false_alarms` trains healthy runs and counts those that anything calls.

Of the quick grid, twenty runs have the seeds 0 to 4 and starts moved in their last digits, twenty have fresh seeds (100 to
119). Each is held to the bounds and judged by the committed baseline. On two cores this takes about an hour and a half;
sessions of five runs are kept and not trained again. Exit code 1 if more than one run in twenty fails.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.lab.grid_runs import GridRun, LabSessions, note
from tunegrid.record import Record
from tunegrid.record.checks import below_bounds, failures
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.report import text_table
from tunegrid.results.summary import table
from tunegrid.results.thresholds import Bounds, load_bounds
from tunegrid.results.verdict import FAILED_BY, failing, undecided

BOUNDS = ROOT / "benchmarks" / "thresholds" / "quick.toml"
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
FIRST_SEED, FIRST_DRAW = 100, 11  # calibration has seeds 0 to 29 and draws 1 to 3
SESSION = 5  # seeds
ALLOWED = 0.05  # of all runs
COUNTS = ("bounds and audits missed", "gate: worse", "cannot tell", "numerics changed")
COLUMNS = {"run": "", **dict.fromkeys(COUNTS, "d"), "fails": ""}


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What is said of one healthy run.

    Attributes:
        missed: sentences on bounds and audits.
        failing: judgements that fail the gate.
        undecided: scores that the gate cannot tell; `changed`: cells whose numerics changed.
    """

    name: str
    missed: Sequence[str]
    failing: Sequence[Judgement]
    undecided: int
    changed: int

    @property
    def fails(self) -> bool:
        """Whether anything calls the run."""
        return bool(self.missed or self.failing)


def objections(record: Record, bounds: Bounds) -> list[str]:
    """Bounds that a record misses, those of today, and audits that failed when it ran."""
    return [f"{record.cell} {sentence}" for sentence in (*below_bounds(record.scores, bounds), *failures(record.audits))]


def planned(sessions: int) -> list[GridRun]:
    """So many sessions of each kind, in turn."""
    kinds = [
        (
            GridRun(seeds=range(SESSION), draw=FIRST_DRAW + n),
            GridRun(seeds=range(FIRST_SEED + SESSION * n, FIRST_SEED + SESSION * (n + 1))),
        )
        for n in range(sessions)
    ]
    return [run for pair in kinds for run in pair]


def verdicts(run: GridRun, baseline: Run, bounds: Mapping[str, Bounds]) -> list[Verdicts]:
    """Bounds, audits and the gate on each seed of a session; raises InputError where it is not complete."""
    return [_verdicts(run, seed, list(grid.values()), baseline, bounds) for seed, grid in run.grids().items()]


def _verdicts(run: GridRun, seed: int, records: Sequence[Record], baseline: Run, bounds: Mapping[str, Bounds]) -> Verdicts:
    judged = gate(baseline, Run.of(records, run.path))
    return Verdicts(
        name=f"seed {seed}" if run.draw is None else f"seed {seed} draw {run.draw}",
        missed=[sentence for record in records for sentence in objections(record, bounds.get(record.cell, {}))],
        failing=failing(judged, FAILED_BY),
        undecided=len(undecided(judged)),
        changed=sum(j.verdict is Verdict.CHANGED and j.quantity == "numerics" for j in judged),
    )


def page(judged: Sequence[Verdicts]) -> Iterable[str]:
    """One row per run, what fails in words, and the count."""
    rows = [(v.name, len(v.missed), len(v.failing), v.undecided, v.changed, "yes" if v.fails else "-") for v in judged]
    yield from text_table(table(COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    for verdict in judged:
        yield from (f"{verdict.name}: {sentence}" for sentence in verdict.missed)
        yield from (f"{verdict.name}: {j.verdict}: {j.cell} {j.quantity} ({j.detail})" for j in verdict.failing)
    yield f"{sum(verdict.fails for verdict in judged)} of {len(judged)} healthy runs fail"


def figures(judged: Sequence[Verdicts]) -> dict[str, int]:
    """How many healthy runs fail, of the baseline's seeds from moved starts, and of fresh seeds."""
    moved = [verdict for verdict in judged if " draw " in verdict.name]
    fresh = [verdict for verdict in judged if verdict not in moved]
    counted = {"moved starts": moved, "fresh seeds": fresh, "all": judged}
    return {name: sum(verdict.fails for verdict in some) for name, some in counted.items()} | {"runs": len(judged)}


def main(arguments: list[str] | None = None, sessions: LabSessions | None = None) -> int:
    """Train, judge, print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab false_alarms", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="of each kind, in fives (default 20)")
    parser.add_argument(
        "--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: reports/baselines/quick-cpu.json"
    )
    parser.add_argument("--workers", default="auto", metavar="N", help="processes (default: one per core)")
    parser.add_argument("--bounds", type=Path, default=BOUNDS, metavar="FILE", help="default: the suite's")
    parser.add_argument("--fresh", action="store_true", help="train everything anew, also sessions that are kept")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="also note the figures in this file")
    options = parser.parse_args(arguments)
    plan = planned(-(-options.runs // SESSION))
    try:
        baseline = read_run(options.baseline)
        (sessions or LabSessions(workers=options.workers, fresh=options.fresh)).train(plan)
        judged = [verdict for run in plan for verdict in verdicts(run, baseline, load_bounds(options.bounds))]
        note(options.measured, "false_alarms", figures(judged))
    except InputError as error:
        refuse(parser, error)
    print(*page(judged), sep="\n")
    return int(sum(verdict.fails for verdict in judged) > ALLOWED * len(judged))
