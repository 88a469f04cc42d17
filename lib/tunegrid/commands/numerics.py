"""Did the arithmetic of training change between two runs? `tunegrid numerics A.json B.json` says, cell by cell.

*equal*: all losses and predictions are. *rounding*: the losses of the first ten updates lie within measured tolerances.
*changed*: they do not, and the first stage is named that changed. Exit code 1 if any cell changed. Below stands how far figures
of cells that are not equal lie apart at most, by arithmetic: what tolerances are held to.
"""

import argparse
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.gates import read_run
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import compared, furthest_apart, load_tolerances
from tunegrid.results.table import Column, lines

COLUMNS = (Column(title="cell", width=15), Column(title="numerics", width=14), Column(title="what"))


def main(arguments: list[str] | None = None) -> int:
    """Print the verdicts; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid numerics", description=__doc__)
    parser.add_argument("old", type=Path, metavar="A.json")
    parser.add_argument("new", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    try:
        pairs = pairs_of(options.old, options.new)
    except InputError as error:
        parser.error(str(error))
    tolerances = load_tolerances()
    verdicts = [compared(*pair, tolerances) for pair in pairs]
    rows = [(new.cell, str(verdict), what) for (_, new), (verdict, what) in zip(pairs, verdicts, strict=True)]
    print(*lines(COLUMNS, rows), sep="\n")
    other = [pair for pair, (verdict, _) in zip(pairs, verdicts, strict=True) if verdict in (Verdict.ROUNDING, Verdict.CHANGED)]
    for kind, figures in sorted(furthest_apart(other, tolerances).items()):
        print(f"furthest apart, {kind}:", ", ".join(f"{name} {apart:.1e}" for name, apart in figures.items()))
    return int(any(row[1] == Verdict.CHANGED for row in rows))


def pairs_of(old_path: Path, new_path: Path) -> list[tuple[Record, Record]]:
    """Every cell and seed that both runs have; raises InputError where they have none in common."""
    old, new = read_run(old_path), read_run(new_path)
    pairs = [
        (before, after)
        for cell, seeds in new.records.items()
        for seed, after in seeds.items()
        if (before := old.records.get(cell, {}).get(seed)) is not None
    ]
    if not pairs:
        raise InputError("the two runs have no cell of one seed in common")
    return pairs
