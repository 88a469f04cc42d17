"""How long and how large will it be? In: records of earlier runs. Out: estimates a cell, and the cells that fit a budget."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.grid.cells import Cell
from lib.grid.tasks import Carve
from lib.results.files import read_records
from lib.results.record import Record
from lib.results.run_table import number, peak_gib

UNITS = {"h": 3600, "m": 60, "s": 1}
SESSION_SECONDS = 15  # imports and collection, once a process
HEADER = "cell            updates     batch  precision  tokens  est. min  est. GiB  from"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cell will take, and the measurement that says so; None is not known."""

    seconds: float | None = None
    gib: float | None = None
    source: str = "never measured"


def seconds_of(text: str, option: str = "--budget") -> float:
    """Seconds of a duration such as 30m, 90s or 1h30m; raises InputError for anything else."""
    if not re.fullmatch(r"(\d+[hms])+", text):
        raise InputError(f"{option} {text!r} is no duration; write it as in 30m, 90s or 1h30m")
    return float(sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([hms])", text)))


def estimates(cells: Sequence[Cell], paths: Iterable[Path]) -> dict[str, Estimate]:
    """The first saved run that knows a cell says what it takes; a footprint of it says what training will take at least."""
    found: dict[str, Estimate] = {}
    for path in paths:
        for cell in cells:
            record = _finished(path, cell.profile.id).get(cell.id)
            if record and cell.id not in found:
                phases = record["memory"]["phases"].values()
                seconds = sum(phase["seconds"] for phase in phases)
                found[cell.id] = Estimate(
                    seconds=seconds, gib=peak_gib(record), source=f"{path.name}, {record['device']['name']}"
                )
        for cell in cells:
            record = _finished(path, "footprint").get(cell.id)
            if record and cell.id not in found:
                found[cell.id] = _from_footprint(cell, record, path)
    return found


def _finished(path: Path, profile: str) -> dict[str, Record]:
    if not path.is_file():
        return {}
    try:
        found = read_records(path, profile)
    except InputError:  # an interrupted or an older run knows nothing
        return {}
    return {cell: record for cell, record in found.items() if record["outcome"] in ("passed", "missed")}


def _from_footprint(cell: Cell, record: Record, path: Path) -> Estimate:
    rate = record["throughput"]["train_samples_per_second"]
    seconds = planned_rows(cell) * cell.recipe.num_train_epochs / rate if rate and cell.profile.id == "full" else None
    return Estimate(seconds=seconds, gib=peak_gib(record), source=f"{path.parent.name}/{path.name}, training alone")


def planned_rows(cell: Cell) -> int:
    """Rows that a full cell trains on: what the splits leave of the hub's train split, under the cap."""
    aside = sum(rule.share for rule in (cell.task.validation, cell.task.test) if isinstance(rule, Carve))
    rows = round(cell.task.train_rows * (1 - aside))
    return min(rows, cell.profile.cap(cell.task.id, "train") or rows)


def planned_updates(cell: Cell) -> int:
    """Updates of a full cell, one feature a row; long passages give some more."""
    recipe = cell.recipe
    rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    return recipe.max_steps or recipe.num_train_epochs * math.ceil(planned_rows(cell) / rows)


def fitting(wanted: Sequence[str], known: Mapping[str, Estimate], budget_seconds: float, workers: int = 1) -> list[str]:
    """The cells that fit into the budget of all workers together, longest first; a cell never measured does not fit."""
    left = workers * (budget_seconds - SESSION_SECONDS)
    chosen = []
    seconds = {cell: found.seconds for cell in wanted if (found := known.get(cell)) and found.seconds is not None}
    for cell in sorted(seconds, key=lambda cell: -seconds[cell]):
        if seconds[cell] <= min(left, budget_seconds - SESSION_SECONDS):
            chosen.append(cell)
            left -= seconds[cell]
    return chosen


def lines(cells: Sequence[Cell], known: Mapping[str, Estimate]) -> list[str]:
    """The grid as a table, with a closing line for the sum."""
    table = [HEADER, *(_line(cell, known.get(cell.id, Estimate())) for cell in cells)]
    seconds = [found.seconds for cell in cells if (found := known.get(cell.id)) and found.seconds is not None]
    return [
        *table,
        f"{len(cells)} cells, {sum(seconds) / 60:.0f} min one after the other for the {len(seconds)} with an estimate",
    ]


def _line(cell: Cell, estimate: Estimate) -> str:
    recipe = cell.recipe
    batch = f"{recipe.per_device_train_batch_size} x {recipe.gradient_accumulation_steps}"
    minutes = None if estimate.seconds is None else estimate.seconds / 60
    length = f"{recipe.max_length}" + (f"+{recipe.max_target_length}" if recipe.max_target_length else "")
    return (
        f"{cell.id:<15} {planned_updates(cell):>7,} {batch:>9}  {recipe.precision:<9} {length:>7}  "
        f"{number(minutes, 8, 1)}  {number(estimate.gib, 8, 2)}  {estimate.source}"
    )
