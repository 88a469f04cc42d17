"""Does the suite cry wolf? `python -m tunegrid.lab false_alarms RUN.json ...` judges healthy runs and counts those it calls.

Each run is whole grids of cells, of one seed or several, with seeds or starts that had no part in bounds and noise, as of
`pytest -m quick --seeds 20000-20039 -n auto --gate=BASELINE.json --benchmark-json=RUN.json`. Each grid is held to the bounds of
today and judged by the committed baseline, without and with the trainings that confirm its misses. Exit code 1 if more than one
in twenty is red with them.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.record.checks import below_bounds, failures
from tunegrid.results.files import read_list
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import FAILED_BY, Judgement, Verdict, in_words
from tunegrid.results.thresholds import Bounds, load_bounds
from tunegrid.results.verdict import failing, undecided

BOUNDS = ROOT / "benchmarks" / "thresholds" / "quick.toml"
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
ALLOWED = 0.05  # of all grids


def objections(records: Sequence[Record], confirming: Sequence[Record], bounds: Mapping[str, Bounds]) -> Iterator[str]:
    """Bounds that records miss, and trainings that confirm them, too; and audits that failed when they ran, in any of these."""
    again = {record.cell: record for record in confirming}
    for record in records:
        trainings = [one for one in (record, again.get(record.cell)) if one and one.finished]
        below = [below_bounds(one.scores, bounds.get(one.cell, {})) for one in trainings]
        yield from (f"{record.cell} {sentence}" for sentence in (below[0] if below and all(below) else ()))
    yield from (f"{one.cell} {text}" for one in (*records, *confirming) for text in failures(one.audits, one.excused))


def main(arguments: list[str] | None = None) -> int:
    """Judge, print what is red and the counts; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab false_alarms", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json", help="saved runs of whole grids")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: the committed quick one")
    parser.add_argument("--bounds", type=Path, default=BOUNDS, metavar="FILE", help="default: the suite's")
    options = parser.parse_args(arguments)
    grids = missed = red = doubtful = changed = 0

    def judge(own: Sequence[Record], again: Sequence[Record]) -> tuple[list[str], list[Judgement]]:
        """What calls a grid, and all verdicts."""
        judged = gate(baseline, Run.of([*own, *again], path))
        return [*objections(own, again, bounds), *map(in_words, failing(judged, FAILED_BY))], judged

    try:
        baseline, bounds = read_run(options.baseline), load_bounds(options.bounds)
        for path in options.runs:
            records = read_list(path)
            for seed in dict.fromkeys(record.seeds.seed for record in records if record.seeds.confirms is None):
                own = [one for one in records if (one.seeds.seed, one.seeds.confirms) == (seed, None)]
                again = [one for one in records if one.seeds.confirms is not None and one.seeds.confirms == seed]
                alone, judged = judge(own, [])
                found, judged = judge(own, again) if again else (alone, judged)
                grids, red, doubtful = grids + 1, red + bool(found), doubtful + len(undecided(judged))
                missed += bool(alone)
                changed += sum(one.quantity == "numerics" and one.verdict is Verdict.CHANGED for one in judged)
                for sentence in found or [f"not confirmed: {sentence}" for sentence in alone]:
                    print(f"{path.name} seed {seed}: {sentence}")
    except InputError as error:
        refuse(parser, error)
    print(f"main scores that cannot be told: {doubtful}; cells whose numerics changed: {changed}")
    print(f"before misses are confirmed: {missed} of {grids}")
    print(f"{red} of {grids} healthy grids are red")
    return int(red > ALLOWED * grids)
