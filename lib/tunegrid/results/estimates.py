"""Estimates a cell's time and memory from records of earlier runs, and divides cells into shards."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE
from tunegrid.grid.tasks import Carve
from tunegrid.record import Record
from tunegrid.results.files import read_saved
from tunegrid.results.table import Column, count, number
from tunegrid.results.table import lines as table_lines

REPORTS = ROOT / "reports"
COMMITTED = ("baselines/quick-cpu.json", "cpu-amd-epyc/footprint.json")  # below it; by name, since users leave files there, too
UNITS = {"h": 3600, "m": 60, "s": 1}
LONGER_UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="updates", width=7, right=True),
    Column(title="batch", width=9, right=True),
    Column(title="precision", width=9, gap=2),
    Column(title="tokens", width=7, right=True),
    Column(title="est. time", width=9, right=True, gap=2),
    Column(title="est. GiB", width=8, right=True, gap=2),
    Column(title="from", gap=2),
)


Unit = TypeVar("Unit", bound=Any)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cell will take, and the measurement that says so; None is not known.

    Attributes:
        gib: the highest peak of that measurement, on its device and with its rows per update.
        device: the name of the device that was measured.
    """

    seconds: float | None = None
    gib: float | None = None
    source: str = "never measured"
    device: str | None = None


def seconds_of(text: str) -> float:
    """Seconds of `--cell-timeout`, such as 30m, 90s or 1h30m; raises InputError for anything else."""
    if not re.fullmatch(r"(\d+[hms])+", text):
        raise InputError(f"invalid --cell-timeout {text!r}: expected a duration, as in 30m, 90s or 1h30m")
    return float(sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([hms])", text)))


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: 42 s, 1.5 min, 5.3 h, 4.6 days; a dash where nothing is known."""
    if seconds is None:
        return "-"
    length, unit = next(((length, unit) for length, unit in LONGER_UNITS if seconds >= length), (1, "s"))
    return f"{seconds:.0f} s" if unit == "s" else f"{seconds / length:.1f} {unit}"


def committed_runs() -> list[Path]:
    """The saved runs that ship with the suite: every machine has the same."""
    return [REPORTS / name for name in COMMITTED]


def estimates(cells: Sequence[Cell], paths: Iterable[Path]) -> dict[str, Estimate]:
    """By cell, what the first saved run that contains it says; in the same file, a run goes before a footprint."""
    known: dict[str, Estimate] = {}
    for path in paths:
        finished = _finished(path)
        for profile in dict.fromkeys(cell.profile.id for cell in cells):
            runs, footprints = ({r.cell: r for r in finished if r.profile == name} for name in (profile, "footprint"))
            for cell in (cell for cell in cells if cell.profile.id == profile and cell.id not in known):
                if cell.id in runs:
                    known[cell.id] = from_run(runs[cell.id], path.name)
                elif cell.id in footprints and not cell.profile.micro:
                    known[cell.id] = _from_footprint(cell, footprints[cell.id], path)
    return known


def _finished(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    try:
        return [record for record in read_saved(path, with_rows=False).records if record.finished]
    except InputError:  # a run that was cut off, or that cannot be read any more, says nothing
        return []


def from_run(record: Record, source: str) -> Estimate:
    """All phases of a cell that has run; `source` is that run's name."""
    seconds = sum(phase.seconds for phase in record.memory.phases.values()) if record.memory else None
    name = record.device.name if record.device else None
    source = f"{source}, {name}" if name else source
    return Estimate(seconds=seconds, gib=record.peak_gib, source=source, device=name)


def _from_footprint(cell: Cell, record: Record, path: Path) -> Estimate:
    """Training alone, at the footprint's rows a second.

    A footprint on a CPU has one row per update. An update of the recipe's size costs less time per row and more memory; by how
    much was not measured, so nothing is scaled, and the source says so.
    """
    rate = record.throughput.train_samples_per_second if record.throughput else None
    rows = planned_rows(cell)
    seconds = rows * cell.recipe.num_train_epochs / rate if rows and rate and cell.profile.id == "full" else None
    source = f"{path.parent.name}/{path.name}, training alone"
    measured, planned = record.recipe.rows_per_update, cell.recipe.rows_per_update
    if measured != planned:
        source += f", at {measured} {'row' if measured == 1 else 'rows'} per update: not scaled to {planned}"
    name = record.device.name if record.device else None
    return Estimate(seconds=seconds, gib=record.peak_gib, source=source, device=name)


def planned_rows(cell: Cell) -> int | None:
    """Rows that a full cell trains on: what the splits leave of train, under the cap; None where the task does not say."""
    if cell.task.train_rows is None:
        return None
    aside = sum(rule.share for rule in (cell.task.validation, cell.task.test) if isinstance(rule, Carve))
    rows = round(cell.task.train_rows * (1 - aside))
    return min(rows, cell.profile.cap(cell.task.id, "train") or rows)


def planned_updates(cell: Cell) -> int | None:
    """Updates of a full cell, one feature per row; long passages give some more. None where the rows are not known."""
    rows = planned_rows(cell)
    return cell.recipe.max_steps or (None if rows is None else cell.recipe.planned_updates(rows))


def seconds_of_cells(cells: Sequence[Cell], paths: Iterable[Path]) -> dict[str, float]:
    """By cell, what saved runs say of it; else of the study's cells of its backbone and task; else of all; 1 where nothing."""
    paths = list(paths)
    study = STUDY.cells(QUICK_PROFILE if any(cell.profile.micro for cell in cells) else FULL_PROFILE)
    known, kin = ({name: e.seconds for name, e in estimates(some, paths).items() if e.seconds} for some in (cells, study))
    kinds: dict[str, list[float]] = {}
    for name, seconds in (kin | known).items():
        kinds.setdefault(name.rpartition("_")[0], []).append(seconds)
    middle = fmean(seconds for kind in kinds.values() for seconds in kind) if kinds else 1.0
    by_kind = {kind: fmean(seconds) for kind, seconds in kinds.items()}
    return {cell.id: known.get(cell.id) or by_kind.get(cell.id.rpartition("_")[0], middle) for cell in cells}


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


def lines(cells: Sequence[Cell], known: Mapping[str, Estimate], runs: Mapping[str, int]) -> list[str]:
    """The grid as a table, with a closing line for the sum over all cells and their `runs`, one per seed."""
    estimated = [known.get(cell.id, Estimate()) for cell in cells]
    times = [runs[cell.id] * one.seconds for cell, one in zip(cells, estimated, strict=True) if one.seconds is not None]
    counts = count(len(cells), "cell") + (f" in {sum(runs.values())} runs" if sum(runs.values()) > len(cells) else "")
    return [
        *table_lines(COLUMNS, [_cells(cell, estimate) for cell, estimate in zip(cells, estimated, strict=True)]),
        f"{counts}, {duration(sum(times))} one after the other for the {len(times)} with an estimate",
    ]


def _cells(cell: Cell, estimate: Estimate) -> tuple[str, ...]:
    recipe, updates = cell.recipe, planned_updates(cell)
    return (
        cell.id,
        "-" if updates is None else f"{updates:,}",
        f"{recipe.per_device_train_batch_size} x {recipe.gradient_accumulation_steps}",
        recipe.precision,
        f"{recipe.max_length}" + (f"+{recipe.max_target_length}" if recipe.max_target_length else ""),
        duration(estimate.seconds),
        number(estimate.gib, 2),
        estimate.source,
    )
