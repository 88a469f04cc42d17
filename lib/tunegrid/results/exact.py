"""Lists every score that differs between two runs, to the last digit."""

from collections.abc import Sequence

from tunegrid.record import Record
from tunegrid.results.run_table import peak_gib


def named(records: Sequence[Record]) -> dict[str, Record]:
    """Records by cell, and by seed where a cell has several."""
    several = len({record.seeds.seed for record in records}) > 1
    return {record.cell + (f" seed {record.seeds.seed}" if several else ""): record for record in records}


def differences(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """A line for every cell that only one run has, and for every score that is not the same."""
    first, second = named(old), named(new)
    lines = [f"{cell}: only in one of the two" for cell in sorted(first.keys() ^ second.keys())]
    for cell in sorted(first.keys() & second.keys()):
        ours, theirs = first[cell].scores, second[cell].scores
        lines += [
            f"{cell}: {name} {ours.get(name)} and {theirs.get(name)}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
    return lines


def identical(old: Sequence[Record], new: Sequence[Record]) -> str:
    """What is said of two runs without a difference."""
    count, cells = sum(len(record.scores) for record in old), len({record.cell for record in old})
    peak = max((peak_gib(record) or 0.0 for record in (*old, *new)), default=0.0)
    return f"identical: {count} scores of {cells} cells; highest memory peak {peak:.2f} GiB"
