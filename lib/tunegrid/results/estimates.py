"""How long cells take, by the records of earlier runs, and cells shared out by that."""

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE
from tunegrid.grid.tasks import Carve
from tunegrid.record import Record
from tunegrid.results.files import read_saved

# Runs that every machine has; by name, since users leave files beside them.
COMMITTED = (ROOT / "reports" / "baselines" / "quick-cpu.json", ROOT / "reports" / "cpu-amd-epyc" / "footprint.json")
KNOWN = (ROOT / "reports" / "latest.json", *COMMITTED)  # the last run here goes first
LONGER_UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))
Unit = TypeVar("Unit", bound=Any)


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: 42 s, 1.5 min, 5.3 h, 4.6 days; a dash where nothing is known."""
    if seconds is None:
        return "-"
    length, unit = next(((length, unit) for length, unit in LONGER_UNITS if seconds >= length), (1, "s"))
    return f"{seconds:.0f} s" if unit == "s" else f"{seconds / length:.1f} {unit}"


def estimates(cells: Sequence[Cell], paths: Iterable[Path]) -> dict[str, float]:
    """Seconds by cell, as the first saved run says that has it; a full cell's training, as a footprint says, if no run does.

    A run that was cut off, or that cannot be read any more, says nothing.
    """
    known: dict[str, float] = {}
    for path in paths:
        try:
            finished = [one for one in read_saved(path, with_rows=False).records if one.finished] if path.is_file() else []
        except InputError:
            finished = []
        for cell in cells:
            own = [one for one in finished if one.cell == cell.id]
            taken = [_seconds(one) for one in own if one.profile == cell.profile.id]
            taken = taken or [_training_seconds(cell, one) for one in own if one.profile == "footprint"]
            if cell.id not in known and taken and taken[-1]:
                known[cell.id] = taken[-1]
    return known


def _seconds(record: Record) -> float:
    """All phases of a cell that has run; 0 if they were not measured."""
    return sum(phase.seconds for phase in record.memory.phases.values()) if record.memory else 0.0


def _training_seconds(cell: Cell, record: Record) -> float:
    """Of a full cell at the footprint's rows a second, which on a CPU are those of one row an update; 0 if not known."""
    task, rate = cell.task, record.throughput and record.throughput.train_samples_per_second
    if cell.profile.id != FULL_PROFILE.id or task.train_rows is None or not rate:
        return 0.0
    aside = sum(rule.share for rule in (task.validation, task.test) if isinstance(rule, Carve))
    rows = round(task.train_rows * (1 - aside))
    return min(rows, cell.profile.cap(task.id, "train") or rows) * cell.recipe.num_train_epochs / rate


def seconds_of_cells(cells: Sequence[Cell], paths: Sequence[Path]) -> dict[str, float]:
    """By cell, what saved runs say of it; else of the study's cells of its backbone and task; else of all; 1 where nothing."""
    study = STUDY.cells(QUICK_PROFILE if any(cell.profile.micro for cell in cells) else FULL_PROFILE)
    known, kinds = estimates(cells, paths), dict[str, list[float]]()
    for name, seconds in (estimates(study, paths) | known).items():
        kinds.setdefault(name.rpartition("_")[0], []).append(seconds)
    mean = fmean(seconds for kind in kinds.values() for seconds in kind) if kinds else 1.0
    return {cell.id: known.get(cell.id) or fmean(kinds.get(cell.id.rpartition("_")[0], [mean])) for cell in cells}


def shared_out(seconds: Mapping[Unit, float], count: int) -> list[list[Unit]]:
    """Shares of about equal length: the longest unit first, each to the share that has least (LPT, Graham 1969).

    Equal units come in the order of their names, so that every machine shares out alike.
    """
    shares: list[list[Unit]] = [[] for _ in range(count)]
    loads = [(0.0, index) for index in range(count)]
    for unit in sorted(seconds, key=lambda unit: (-seconds[unit], unit)):
        load, index = heappop(loads)
        shares[index].append(unit)
        heappush(loads, (load + seconds[unit], index))
    return shares
