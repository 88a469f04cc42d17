"""Does the suite cry wolf? `python -m tunegrid.lab false_alarms RUN.json ...` judges healthy runs and counts those it calls.

Each run is whole grids of cells, of one seed or several, with seeds or starts that had no part in bounds and noise, as of
`pytest -m quick --seeds 20000-20039 -n auto --benchmark-json=RUN.json`. Each grid is held to the bounds of today and judged by
the committed baseline. Exit code 1 if more than one in twenty is red.
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
from tunegrid.results.judgements import FAILED_BY, Verdict, in_words
from tunegrid.results.thresholds import Bounds, load_bounds
from tunegrid.results.verdict import failing, undecided

BOUNDS = ROOT / "benchmarks" / "thresholds" / "quick.toml"
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
ALLOWED = 0.05  # of all grids


def objections(records: Sequence[Record], bounds: Mapping[str, Bounds]) -> Iterator[str]:
    """Bounds that records miss, and audits that failed when they ran."""
    for record in records:
        below = below_bounds(record.scores, bounds.get(record.cell, {})) if record.finished else []
        yield from (f"{record.cell} {sentence}" for sentence in (*below, *failures(record.audits, record.excused)))


def main(arguments: list[str] | None = None) -> int:
    """Judge, print what is red and the counts; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab false_alarms", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json", help="saved runs of whole grids")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE", help="default: the committed quick one")
    parser.add_argument("--bounds", type=Path, default=BOUNDS, metavar="FILE", help="default: the suite's")
    options = parser.parse_args(arguments)
    grids = red = doubtful = changed = 0
    try:
        baseline, bounds = read_run(options.baseline), load_bounds(options.bounds)
        for path in options.runs:
            records = read_list(path)
            for seed in dict.fromkeys(record.seeds.seed for record in records):
                own = [record for record in records if record.seeds.seed == seed]
                judged = gate(baseline, Run.of(own, path))
                found = [*objections(own, bounds), *map(in_words, failing(judged, FAILED_BY))]
                grids, red, doubtful = grids + 1, red + bool(found), doubtful + len(undecided(judged))
                changed += sum(one.quantity == "numerics" and one.verdict is Verdict.CHANGED for one in judged)
                print(*(f"{path.name} seed {seed}: {sentence}" for sentence in found), sep="\n", end="\n" * bool(found))
    except InputError as error:
        refuse(parser, error)
    print(f"main scores that cannot be told: {doubtful}; cells whose numerics changed: {changed}")
    print(f"{red} of {grids} healthy grids are red")
    return int(red > ALLOWED * grids)
