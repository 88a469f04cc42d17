"""Builds a table for each instrument: its figures by cell and part, averaged over a run's seeds."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunegrid.gate.figures import load_frame
from tunegrid.gate.statistics import ALPHA, critical_value, ratio
from tunegrid.record import Record
from tunegrid.record.record import InstrumentRecord
from tunegrid.report.tables import Section


def instrument_sections(records: Sequence[Record], run: Path | None) -> Iterator[Section]:
    """Yields a section for each instrument of the run.

    A section's table has a row for each cell and part; its sentences explain missing figures.
    """
    frame = load_frame(records, run)
    instruments: dict[str, InstrumentRecord] = {}
    for record in records:
        instruments |= record.instruments
    for name, instrument in instruments.items():
        yield _section(name, instrument, frame[frame.instrument == name])


def _section(name: str, instrument: InstrumentRecord, frame: pd.DataFrame) -> Section:
    """A section with an instrument's table and the reasons for missing figures."""
    lines = defaultdict[Any, dict[str, str]](dict)
    unmeasured = defaultdict[str, list[str]](list)
    for (cell, part, figure), rows in frame.groupby(["cell", "part", "figure"], sort=False):
        value, low, high = interval(rows)
        note = next(filter(None, rows.note), "")
        if np.isnan(value) and note:
            unmeasured[note].append(f"{cell} {part}".strip())
        form = instrument.figures[figure].shown if figure in instrument.figures else ""
        if form:
            ends = "" if np.isnan(low) else f" ({low:{form}} {high:{form}})"
            lines[cell, part][figure] = "-" if np.isnan(value) else f"{value:{form}}{ends}"
    shown = set[str]().union(*lines.values())
    columns = [figure for figure in instrument.figures if figure in shown]
    table = []
    for (cell, part), line in lines.items():
        table.append({"cell": cell, "part": part, **dict.fromkeys(columns, "-"), **line})
    return Section(
        heading=f"{name}: {instrument.question}",
        frame=pd.DataFrame(table),
        formats=dict.fromkeys(columns, ""),
        sentences=[
            f"no figure for {', '.join(cells)}: {note}" for note, cells in unmeasured.items()
        ],
    )


def interval(rows: pd.DataFrame) -> tuple[float, float, float]:
    """The mean of a figure over seeds and its 95 % interval.

    The interval comes from the figure's rows if it has rows, else from the instrument if it gave
    one, else from the scatter of the seeds. With a single seed, it is then NaN.
    """
    intervals = []
    for _, group in rows.groupby("seed", dropna=False):
        if (group.row != "").any():
            intervals.append(ratio(group.value * group.weight, group.weight))
        else:
            intervals.append(group[["value", "low", "high"]].mean())
    number = len(intervals)
    seeds = np.array(intervals, float)
    value, low, high = seeds.mean(0)
    if number > 1 and np.isnan(low):
        sd = np.std(seeds, 0, ddof=1)[0]
        reach = critical_value(ALPHA / 2, number - 1) * sd / number**0.5
        return value, value - reach, value + reach
    return value, low, high
