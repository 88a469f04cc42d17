"""Print how close healthy cells come to the limits of audits, as a Markdown table.

Each row shows an audit, one of its limits (which may depend on a cell's arithmetic) and the largest
value in all runs. If an audit records no value, the row shows the largest distance in its details.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from tunegrid.record import AuditFinding, Record
from tunegrid.runs.files import read_list

DISTANCE = re.compile(r"\bby (\d[.]\d+e[+-]\d\d)\b")


class Extreme(NamedTuple):
    """The largest value of an audit for one limit, with its cell and seed."""

    audit: str
    limit: float | None
    value: float
    case: str
    finding_count: int


def measured_value(finding: AuditFinding) -> float | None:
    """A finding's value, else the largest distance in its detail ("by 1.0e-06"), else None."""
    if finding.value is not None:
        return finding.value
    numbers = map(float, DISTANCE.findall(finding.detail))
    return max(numbers, default=None)


def find_extremes(records: Iterable[Record]) -> list[Extreme]:
    """Find the largest value for each audit and limit, sorted by audit name and limit."""
    groups = defaultdict[tuple[str, float | None], list[tuple[float, str]]](list)
    for record in records:
        for finding in record.audits:
            value = measured_value(finding)
            if value is not None:
                case = f"{record.cell}, seed {record.seeds.seed}"
                groups[finding.name, finding.limit].append((value, case))
    extremes = []
    for (audit, limit), values in groups.items():
        value, case = max(values, key=itemgetter(0))
        extremes.append(Extreme(audit, limit, value, case, len(values)))
    return sorted(extremes, key=lambda extreme: (extreme.audit, extreme.limit or 0.0))


def limits_table(extremes: Iterable[Extreme]) -> str:
    """Format the extremes as a Markdown table."""
    lines = ["| audit | limit | largest value | of the limit | in | findings |"]
    lines.append("|---|---|---|---|---|---|")
    for extreme in extremes:
        limit = share = ""
        if extreme.limit is not None:
            limit = f"{extreme.limit:.1e}"
        if extreme.limit:
            share = f"{extreme.value / extreme.limit:.2g}"
        cells = [f"`{extreme.audit}`", limit, f"{extreme.value:.1e}", share, extreme.case]
        lines.append(f"| {' | '.join(cells)} | {extreme.finding_count} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 0."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab limits", description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN.json", help="saved runs of healthy cells")
    options = parser.parse_args(arguments)
    records: list[Record] = []
    for path in options.runs:
        records += read_list(path)
    print(limits_table(find_extremes(records)))
    return 0
