"""What does the gate see of real degradations? `python -m lib sees` trains quick cells with something wrong and judges them.

One in twenty or one in ten training rows with a wrong target, half the learning rate, every tenth update lost
(`benchmarks/test_degraded.py`). It prints the verdict on each cell's main score, and what bounds, audits and numerics say. On
two cores this takes about ten minutes; runs are kept in .cache/degraded, and --reuse takes those that are there.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lib.commands.grid_runs import ROOT, train
from lib.errors import InputError
from lib.results.files import read_list
from lib.results.gates import Run, gate, read_run
from lib.results.judgements import Judgement, Verdict
from lib.results.table import Column, lines, signed

RUNS = ROOT / ".cache" / "degraded"
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


def column(path: Path, baseline: Run) -> dict[str, str]:
    """One degradation's answers by cell."""
    records = read_list(path)
    judged = gate(baseline, Run.of(records, path))
    missed = {record.cell: record.missed for record in records}
    return {cell: calls(missed, judged, cell) for cell in missed}


def summed_up(name: str, answers: Collection[str]) -> str:
    """How many cells are called at one degradation."""
    worse = sum(f" {Verdict.WORSE}" in answer for answer in answers)
    called = sum(f" {Verdict.WORSE}" in answer or AND in answer for answer in answers)
    return f"{name}: the gate calls {worse} of {len(answers)} cells worse; bounds, audits and numerics included, {called}"


def main(arguments: list[str] | None = None) -> int:
    """Train, judge, print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m lib sees", description=__doc__)
    parser.add_argument(
        "--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: reports/baselines/quick-cpu.json"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="a seed that the baseline has (default 0)")
    parser.add_argument("--workers", default="auto", metavar="N", help="processes (default: one a core)")
    parser.add_argument("--reuse", action="store_true", help="take runs that are in .cache/degraded; train the others")
    options = parser.parse_args(arguments)
    try:
        baseline = read_run(options.baseline)
        answers = {}
        for name in DEGRADATIONS:
            path = RUNS / f"{name}-seed-{options.seed}.json"
            if not (options.reuse and path.is_file()):
                train(path, options.workers, "-m", "degraded", "-k", name, "--seed", str(options.seed))
            answers[name] = column(path, baseline)
    except InputError as error:
        parser.error(str(error))
    cells = dict.fromkeys(cell for column_of in answers.values() for cell in column_of)
    columns = (Column(title="cell", width=15), *(Column(title=name, width=36) for name in DEGRADATIONS))
    print(*lines(columns, [(cell, *(answers[name].get(cell, "-") for name in DEGRADATIONS)) for cell in cells]), sep="\n")
    print(*(summed_up(name, by_cell.values()) for name, by_cell in answers.items()), sep="\n")
    return 0
