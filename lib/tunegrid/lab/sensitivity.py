"""What does the gate see of real degradations? `python -m tunegrid.lab sensitivity` trains cells with something wrong.

Quick cells train with a wrong target in one of twenty or of ten rows, at half the learning rate, or without every tenth update
(`benchmarks/test_degraded.py`). It prints the verdict on each cell's main score, and what bounds, audits and numerics say. On
two cores this takes about ten minutes; runs are kept and not trained again.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.lab.false_alarms import BOUNDS, objections
from tunegrid.lab.grid_runs import LabSessions, OtherLabSession
from tunegrid.lab.measured import note
from tunegrid.results.files import read_list
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.table import Column, lines, signed
from tunegrid.results.thresholds import Bounds, load_bounds

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
AND = ", "
# What `benchmarks/test_degraded.py` does to a cell: a share of wrong targets in percent, half the rate, updates that are lost.
DEGRADATIONS = ("targets_5", "targets_10", "rate_halved", "tenth_missing")


def calls(records: Mapping[str, Sequence[str]], judged: Sequence[Judgement], cell: str) -> str:
    """How one cell's main score changed, the gate's verdict on it, and who else calls it."""
    own = [judgement for judgement in judged if judgement.cell == cell]
    main = next((j for j in own if j.quantity == j.main_score), None)
    if main is None:
        return "-"
    others = ["bound or audit"] if records[cell] else []
    others += ["numerics"] if any(j.quantity == "numerics" and j.verdict is Verdict.CHANGED for j in own) else []
    return AND.join([f"{signed(main.effect, 1)} {main.verdict}", *others])


def planned(seed: int) -> dict[str, OtherLabSession]:
    """A session a degradation."""
    return {
        name: OtherLabSession(
            label=f"{name}-seed-{seed}",
            options=("-m", "degraded", "-k", name, "--seeds", str(seed)),
            count=len(STUDY_IDS),
        )
        for name in DEGRADATIONS
    }


def column(path: Path, baseline: Run, bounds: Mapping[str, Bounds]) -> tuple[dict[str, str], list[float]]:
    """One degradation's answers by cell, and by how much it changed their main scores."""
    records = read_list(path)
    judged = gate(baseline, Run.of(records, path))
    missed = {record.cell: objections(record, bounds.get(record.cell, {})) for record in records}
    effects = [j.effect for j in judged if j.quantity == j.main_score and j.effect is not None]
    return {cell: calls(missed, judged, cell) for cell in missed}, effects


def figures(answers: Collection[str], effects: Sequence[float]) -> dict[str, float]:
    """How far one degradation moves main scores, and how many cells are called."""
    return {
        "cells": len(answers),
        "low": round(min(effects), 1),
        "high": round(max(effects), 1),
        "median": round(median(effects), 1),
        "worse": sum(f" {Verdict.WORSE}" in answer for answer in answers),
        "called": sum(f" {Verdict.WORSE}" in answer or AND in answer for answer in answers),
    }


def summed_up(name: str, figures: Mapping[str, float]) -> str:
    """How many cells are called at one degradation."""
    worse, called = figures["worse"], figures["called"]
    moved = f"{signed(figures['low'], 1)} to {signed(figures['high'], 1)}, median {signed(figures['median'], 1)}"
    verdicts = f"the gate calls {worse} of {figures['cells']} cells worse; bounds, audits and numerics included, {called}"
    return f"{name}: changes main scores by {moved}; {verdicts}"


def main(arguments: list[str] | None = None, sessions: LabSessions | None = None) -> int:
    """Train, judge, print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab sensitivity", description=__doc__)
    parser.add_argument(
        "--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: reports/baselines/quick-cpu.json"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="a seed that the baseline has (default 0)")
    parser.add_argument("--workers", default="auto", metavar="N", help="processes (default: one per core)")
    parser.add_argument("--bounds", type=Path, default=BOUNDS, metavar="FILE", help="default: the suite's")
    parser.add_argument("--fresh", action="store_true", help="train everything anew, also sessions that are kept")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="also note the figures in this file")
    options = parser.parse_args(arguments)
    try:
        baseline = read_run(options.baseline)
        plan = planned(options.seed)
        (sessions or LabSessions(workers=options.workers, fresh=options.fresh)).train(list(plan.values()))
        columns_of = {name: column(run.path, baseline, load_bounds(options.bounds)) for name, run in plan.items()}
        answers = {name: by_cell for name, (by_cell, _) in columns_of.items()}
        counted = {name: figures(by_cell.values(), effects) for name, (by_cell, effects) in columns_of.items()}
        note(options.measured, "sensitivity", counted)
    except InputError as error:
        refuse(parser, error)
    cells = dict.fromkeys(cell for column_of in answers.values() for cell in column_of)
    columns = (Column(title="cell", width=15), *(Column(title=name, width=36) for name in DEGRADATIONS))
    print(*lines(columns, [(cell, *(answers[name].get(cell, "-") for name in DEGRADATIONS)) for cell in cells]), sep="\n")
    print(*(summed_up(name, own) for name, own in counted.items()), sep="\n")
    return 0
