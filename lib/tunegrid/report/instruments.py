"""The tables of instruments: what each measured, by cell and part, over the seeds of a run."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunegrid.gate.figures import load_frame
from tunegrid.gate.statistics import ALPHA, critical_value, ratio
from tunegrid.record import Record
from tunegrid.report.tables import Section


def instrument_sections(records: Sequence[Record], run: Path | None) -> Iterator[Section]:
    """One for each instrument that was asked: a row for each cell and part; sentences say what was not measured, and why."""
    frame = load_frame(records, run)
    for name, part in {name: part for record in records for name, part in record.instruments.items()}.items():
        lines, unmeasured = defaultdict[Any, dict[str, str]](dict), defaultdict[str, list[str]](list)
        for (cell, place, figure), group in frame[frame.instrument == name].groupby(["cell", "part", "figure"], sort=False):
            value, low, high = interval(group)
            note, form = next(filter(None, group.note), ""), part.figures[figure].shown if figure in part.figures else ""
            if np.isnan(value) and note:
                unmeasured[note].append(f"{cell} {place}".strip())
            if form:
                ends = "" if np.isnan(low) else f" ({low:{form}} {high:{form}})"
                lines[cell, place][figure] = "-" if np.isnan(value) else f"{value:{form}}{ends}"
        columns = [figure for figure in part.figures if any(figure in line for line in lines.values())]
        rows = [{"cell": cell, "part": place, **dict.fromkeys(columns, "-"), **line} for (cell, place), line in lines.items()]
        sentences = [f"no figure for {', '.join(cells)}: {note}" for note, cells in unmeasured.items()]
        formats = dict.fromkeys(columns, "")
        yield Section(heading=f"{name}: {part.question}", frame=pd.DataFrame(rows), formats=formats, sentences=sentences)


def interval(rows: pd.DataFrame) -> tuple[float, float, float]:
    """The mean over seeds of a figure, and its 95 % interval: of its rows, or that which it brought, or else of the seeds."""
    seeds = []
    for _, group in rows.groupby("seed", dropna=False):
        has_rows = (group.row != "").any()
        seeds.append(ratio(group.value * group.weight, group.weight) if has_rows else group[["value", "low", "high"]].mean())
    value, low, high = np.array(seeds, float).mean(0)
    if seeds[1:] and np.isnan(low):
        reach = critical_value(ALPHA / 2, len(seeds) - 1) * np.std(seeds, 0, ddof=1)[0] / len(seeds) ** 0.5
        low, high = value - reach, value + reach
    return value, low, high
