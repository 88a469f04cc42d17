"""Makes one `Entry` per cell of saved runs: a method on one backbone and task, to compare with others. No torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

import numpy as np

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.examples import read
from tunegrid.results.fronts import front
from tunegrid.results.noise import NoiseKey
from tunegrid.results.record_checks import check_alike, failed, invariants, not_numbers
from tunegrid.results.run_table import peak_gib
from tunegrid.results.statistics import Array

BYTES_A_PARAMETER = 4  # trained parameters are fp32
TRAINED, PEAK, SECONDS = COSTS = ("trained bytes", "peak GiB", "seconds")
SourcedRecord = tuple[Record, Path]  # a record, and the file of its run


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method on one backbone and task.

    Attributes:
        records: one per seed.
        rows: points of each test row, the mean over seeds; None where they were not kept for every seed.
    """

    records: Sequence[Record]
    rows: Array | None = None

    @property
    def first(self) -> Record:
        """The record that stands for all, where they are alike."""
        return self.records[0]

    @property
    def method(self) -> str:
        """Its method."""
        return self.first.method

    @property
    def key(self) -> NoiseKey:
        """Cell and main score, as noise is kept by."""
        return self.first.cell, self.first.main_score

    @cached_property
    def scores(self) -> list[float]:
        """Main scores that are numbers, by seed."""
        return [score for record in self.records if (score := record.scores.get(record.main_score)) is not None]

    @property
    def score(self) -> float:
        """The main score, its mean over seeds; not a number where no seed has one."""
        return fmean(self.scores) if self.scores else float("nan")

    @cached_property
    def objections(self) -> list[str]:
        """What audits find in any seed: its figures may not be those of the method."""
        messages = [sentence for r in self.records for sentence in (*failed(r), *invariants(r), *not_numbers(r))]
        absent = [] if len(self.scores) == len(self.records) else [f"a seed has no {self.first.main_score}"]
        return list(dict.fromkeys([*messages, *absent]))

    @cached_property
    def seconds(self) -> list[float]:
        """Seconds of training, by seed."""
        return [record.training.seconds for record in self.records if record.training]

    @cached_property
    def costs(self) -> dict[str, float | None]:
        """What it costs: bytes that training changes, the highest memory peak, mean seconds of training."""
        parameters, memory = self.first.parameters, self.first.memory
        trained = memory.ledger.checkpoint_bytes if memory else None
        if trained is None and parameters:
            trained = BYTES_A_PARAMETER * parameters.trainable_params
        peak = max((peak for record in self.records if (peak := peak_gib(record)) is not None), default=None)
        return {TRAINED: trained, PEAK: peak, SECONDS: fmean(self.seconds) if self.seconds else None}

    @property
    def test_rows(self) -> set[str]:
        """What tells the rows that it was scored on: their hash, or else that of all its data."""
        return {r.examples.rows_hash if r.examples else r.data.fingerprint if r.data else "" for r in self.records}


# The front: of the methods of one backbone and task


def sound(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that no audit objects to."""
    return [entry for entry in entries if not entry.objections]


def figures(entry: Entry, costs: Sequence[str]) -> list[float]:
    """Of which less is better: the score, negated, and the costs."""
    return [-entry.score, *(float(entry.costs[name] or 0.0) for name in costs)]


def fronts(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """By each cost that was measured of all sound entries, those that no other one is as good as for as little of it.

    Args:
        entries: of one backbone and task; tables and pages star what this says.
    """
    rated = sound(entries)
    costs = [name for name in COSTS if all(entry.costs[name] is not None for entry in rated)]
    return {cost: front(rated, partial(figures, costs=[cost])) for cost in costs}


# From records


def entry_of(saved: Sequence[SourcedRecord]) -> Entry:
    """The entry of a cell's records."""
    kept = [(read(record, path), record.main_score) for record, path in saved]
    points = [examples.points[name] for examples, name in kept if examples and name in examples.points]
    alike = len(points) == len(saved) and len({len(own) for own in points}) == 1 and len(points[0]) > 1
    rows = np.mean(np.asarray(points, float), axis=0) if alike else None
    return Entry(records=[record for record, _ in saved], rows=rows)


def entries_of(runs: Mapping[Path, Sequence[Record]]) -> list[Entry]:
    """The entries of all cells that finished; raises InputError where the runs cannot be compared."""
    saved = [(record, path) for path, records in runs.items() for record in records]
    _check_seeds(saved)
    finished = [(record, path) for record, path in saved if record.finished]
    _check([record for record, _ in finished], " and ".join(map(str, runs)))
    cells: dict[str, list[SourcedRecord]] = defaultdict(list)
    for record, path in finished:
        cells[record.cell].append((record, path))
    return [entry_of(own) for own in cells.values()]


def _check_seeds(saved: Sequence[SourcedRecord]) -> None:
    """Raises InputError where two records are of one profile, cell and seed."""
    runs: dict[tuple[str, str, int | None], Path] = {}
    for record, path in saved:
        key = (record.profile, record.cell, record.seeds.seed)
        if key in runs:
            both = f"{runs[key]} and {path} both hold" if runs[key] != path else f"{path} holds twice"
            raise InputError(f"{both} {record.cell} of seed {record.seeds.seed}; a comparison takes each seed once")
        runs[key] = path


def _check(records: Sequence[Record], runs: str) -> None:
    """Raises InputError where records are of two profiles, of one method, or without scores."""
    profiles = sorted({record.profile for record in records})
    if len(profiles) > 1:
        raise InputError(f"{runs}: cells of {' and '.join(profiles)}; compare one profile at a time")
    if not any(record.scores for record in records):
        raise InputError(f"{runs}: no cell finished with a score, so there is nothing to compare")
    methods = {record.method for record in records}
    if len(methods) == 1:
        raise InputError(f"{runs}: one method only, {methods.pop()}; a comparison takes two or more")
    check_alike(records)
