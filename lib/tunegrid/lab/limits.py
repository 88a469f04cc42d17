"""How close healthy cells come to the limits of audits, as a Markdown table.

Each row is an audit and one of its limits, which may depend on a cell's arithmetic, with the largest
value of all runs. Of an audit that keeps no value, the largest distance that its details name is
shown, without a limit.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import AuditFinding, Record
from tunegrid.runs.files import read_list

DISTANCE = re.compile(r"\bby (\d[.]\d+e[+-]\d\d)\b")


@dataclass(kw_only=True)
class Extreme:
    """The largest value of an audit at one limit, and where it was measured."""

    audit: str
    limit: float | None
    value: float
    place: str
    count: int = 1


def measured_value(finding: AuditFinding) -> float | None:
    """An audit's value, or the largest distance in its detail, as "by 1.0e-06"; None: neither."""
    if finding.value is not None:
        return finding.value
    numbers = map(float, DISTANCE.findall(finding.detail))
    return max(numbers, default=None)


def find_extremes(records: Iterable[Record]) -> list[Extreme]:
    """The largest value of each audit and limit, in the order of audits' names."""
    extremes: dict[tuple[str, float | None], Extreme] = {}
    for record in records:
        for finding in record.audits:
            value = measured_value(finding)
            if value is None:
                continue
            place = f"{record.cell}, seed {record.seeds.seed}"
            new = Extreme(audit=finding.name, limit=finding.limit, value=value, place=place)
            old = extremes.setdefault((finding.name, finding.limit), new)
            if old is new:
                continue
            old.count += 1
            if value > old.value:
                old.value = value
                old.place = place
    return sorted(extremes.values(), key=lambda extreme: (extreme.audit, extreme.limit or 0.0))


def limits_table(extremes: Iterable[Extreme]) -> str:
    """The table in Markdown."""
    lines = ["| audit | limit | largest value | of the limit | in | findings |"]
    lines.append("|---|---|---|---|---|---|")
    for extreme in extremes:
        limit = share = ""
        if extreme.limit is not None:
            limit = f"{extreme.limit:.1e}"
        if extreme.limit:
            share = f"{extreme.value / extreme.limit:.2g}"
        cells = [f"`{extreme.audit}`", limit, f"{extreme.value:.1e}", share, extreme.place]
        lines.append(f"| {' | '.join(cells)} | {extreme.count} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab limits", description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN.json", help="saved runs of healthy cells")
    options = parser.parse_args(arguments)
    records: list[Record] = []
    try:
        for path in options.runs:
            records += read_list(path)
    except InputError as error:
        refuse(parser, error)
    print(limits_table(find_extremes(records)))
    return 0
