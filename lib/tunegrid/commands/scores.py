"""Do two runs have the same scores? `tunegrid scores A.json B.json` lists every difference; exit code 1 if any."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.files import read_list
from tunegrid.results.run_table import peak_gib


def named(records: Sequence[Record]) -> dict[str, Record]:
    """Records by cell, and by seed where a cell has several."""
    several = len({record.seeds.seed for record in records}) > 1
    return {record.cell + (f" seed {record.seeds.seed}" if several else ""): record for record in records}


def differences(first: Mapping[str, Record], second: Mapping[str, Record]) -> list[str]:
    """A line for every cell that only one run has, and for every score that is not the same to the last digit."""
    lines = [f"{cell}: only in one of the two" for cell in sorted(first.keys() ^ second.keys())]
    for cell in sorted(first.keys() & second.keys()):
        ours, theirs = first[cell].scores, second[cell].scores
        lines += [
            f"{cell}: {name} {ours.get(name)} and {theirs.get(name)}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid scores", description=__doc__)
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    try:
        first, second = named(read_list(options.first)), named(read_list(options.second))
    except InputError as error:
        parser.error(str(error))
    lines = differences(first, second)
    count, cells = sum(len(record.scores) for record in first.values()), len({record.cell for record in first.values()})
    peak = max((peak_gib(record) or 0.0 for record in (*first.values(), *second.values())), default=0.0)
    print("\n".join(lines) if lines else f"identical: {count} scores of {cells} cells; highest memory peak {peak:.2f} GiB")
    return 1 if lines else 0
