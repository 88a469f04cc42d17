"""How long cells take, by the records of earlier runs, and cells shared out by that."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE
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
    return next((f"{seconds / size:.1f} {unit}" for size, unit in LONGER_UNITS if seconds >= size), f"{seconds:.0f} s")


def estimates(cells: Sequence[Cell], paths: Iterable[Path]) -> dict[str, float]:
    """Seconds that all phases of a cell took, by the first saved run that has it; one that cannot be read says nothing."""
    profiles, known = {cell.id: cell.profile.id for cell in cells}, dict[str, float]()
    for path in filter(Path.is_file, paths):
        try:
            records = read_saved(path, with_rows=False).records
        except InputError:
            continue
        own = [(one.cell, one.memory) for one in records if one.finished and one.profile == profiles.get(one.cell)]
        known = {cell: sum(phase.seconds for phase in memory.phases.values()) for cell, memory in own if memory} | known
    return known


def seconds_of_cells(cells: Sequence[Cell], paths: Sequence[Path]) -> dict[str, float]:
    """By cell, what saved runs say of it; else of the study's cells of its backbone and task; else of all; 1 where nothing."""
    study = STUDY.cells(QUICK_PROFILE if any(cell.profile.micro for cell in cells) else FULL_PROFILE)
    known, kinds = estimates(cells, paths), defaultdict[str, list[float]](list)
    for name, seconds in (estimates(study, paths) | known).items():
        kinds[name.rpartition("_")[0]].append(seconds)
    mean = fmean(seconds for kind in kinds.values() for seconds in kind) if kinds else 1.0
    return {cell.id: known.get(cell.id) or fmean(kinds.get(cell.id.rpartition("_")[0], [mean])) for cell in cells}


def shared_out(seconds: Mapping[Unit, float], count: int) -> list[list[Unit]]:
    """Shares of about equal length: the longest unit first, each to the share that has least (LPT, Graham 1969).

    Equal units come in the order of their names, so that every machine shares out alike.
    """
    shares: list[list[Unit]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for unit in sorted(seconds, key=lambda unit: (-seconds[unit], unit)):
        index = loads.index(min(loads))
        shares[index].append(unit)
        loads[index] += seconds[unit]
    return shares
