"""Says how robust cells are: points of rows give the part of a record, records give lines, objections and comparisons.

What a shift costs a method is held to what it costs SFT of the same backbone and task, paired by row. Rows are drawn anew for
an interval, trainings are not: it tells how far other rows of this kind would move a figure, not how far another seed would.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from tunegrid.grid.methods import SFT
from tunegrid.record import Record
from tunegrid.record.instruments import ContrastRecord, ShiftedRecord, ShiftRecord
from tunegrid.record.parts import Estimate, ExamplesRecord
from tunegrid.results.examples import Examples, row_id
from tunegrid.results.run_table import by_cell
from tunegrid.results.statistics import Array, RowEffect, holm, paired, two_sided
from tunegrid.results.table import Column, lines, number, signed

if TYPE_CHECKING:
    from tunegrid.run.shifted import Contrast, ShiftedPoints

PLAIN = "plain"
FOLLOWED = 0.5  # of the twins of rows that are answered rightly; a coin's toss gives as many
FEWEST = 10  # of such rows
RowPoints = Mapping[str, Sequence[float]]  # of a record, by shift, and `plain`
ReadPoints = Callable[[Record], RowPoints | None]


# The part of a record


def shifted_record(told: "ShiftedPoints", kept: ExamplesRecord | None) -> ShiftedRecord:
    """The part of a record of what was scored; `kept` says where the points of the rows are."""
    changes = {name: paired(told.plain, shift.points) for name, shift in told.shifts.items()}
    return ShiftedRecord(
        metric=told.metric,
        rows=len(told.rows),
        score=fmean(told.plain),
        repeated=told.plain == told.again,
        unmoved=[name for name, shift in told.shifts.items() if not shift.read and shift.points != told.plain],
        shifts={
            name: ShiftRecord(
                meaning=shift.meaning,
                changed=shift.changed,
                read=shift.read,
                score=fmean(shift.points),
                change=_estimate(changes[name], shift.read),
            )
            for name, shift in told.shifts.items()
        },
        contrasts={name: _contrast(contrast) for name, contrast in told.contrasts.items()},
        examples=kept,
    )


def _estimate(effect: RowEffect, read: int) -> Estimate:
    """A change with its interval; none where the model reads what it read before."""
    low, high = (effect.low, effect.high) if read else (effect.points, effect.points)
    return Estimate(value=effect.points, low=low, high=high)


def _contrast(contrast: "Contrast") -> ContrastRecord:
    both = sum(right and twin for right, twin in zip(contrast.right, contrast.twin, strict=True))
    return ContrastRecord(meaning=contrast.meaning, pairs=len(contrast.right), right=sum(contrast.right), both=both)


def rows_of(told: "ShiftedPoints") -> Examples:
    """The points of each row, to be kept beside the run."""
    points = {PLAIN: told.plain} | {name: shift.points for name, shift in told.shifts.items()}
    return Examples(ids=[row_id(row) for row in told.rows], points=points, predictions=[str(one) for one in told.predictions])


def objections(part: ShiftedRecord, *, short: bool = False) -> Iterator[str]:
    """A sentence where points change without a reason, and where answers do not turn that must: invariance alone is none.

    A training that was cut `short` need not have learned what decides.
    """
    if not part.repeated:
        yield "scored again without any change, rows have other points: drops cannot be told from chance"
    for name in part.unmoved:
        yield f"shift {name} changes no token that the model reads, and its points are others"
    for name, contrast in part.contrasts.items():
        if not short and contrast.right >= FEWEST and contrast.both <= FOLLOWED * contrast.right:
            yield (
                f"shift {name} turns the right answer, and of {contrast.right} rows that are answered rightly, only "
                f"{contrast.both} twins are: the model hardly reads what decides"
            )


# Lines over seeds, and methods beside SFT


@dataclass(frozen=True, kw_only=True)
class Against:
    """What a shift costs a method beyond what it costs SFT: below 0 it costs more.

    Attributes:
        p: of no difference, adjusted over all comparisons of the run (Holm).
    """

    points: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True)
class ShiftLine:
    """What a shift does to a cell, over its seeds: means, the ends of intervals as well.

    Attributes:
        read: share of rows that the model reads otherwise, in percent.
        against: None for SFT itself, and where its rows are not at hand.
    """

    cell: str
    task: str
    shift: str
    meaning: str
    read: float
    plain: float
    score: float
    change: float
    low: float
    high: float
    against: Against | None


@dataclass(frozen=True, kw_only=True)
class ContrastLine:
    """How often answers follow where a shift turns the right one, over a cell's seeds, in percent.

    Attributes:
        pairs: rows with a twin, of one seed.
        both: of all pairs, those whose row and twin are both answered rightly.
    """

    cell: str
    shift: str
    meaning: str
    pairs: int
    both: float


def shift_lines(records: Iterable[Record], read: ReadPoints) -> list[ShiftLine]:
    """A line for each cell and shift, in the order of the records."""
    cells = by_cell(record for record in records if record.shifted)
    against = _against(cells, read)
    return [
        _line(seeds, name, against.get((seeds[0].profile, seeds[0].cell, name))) for seeds in cells for name in _names(seeds)
    ]


def _names(seeds: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in seeds if record.shifted for name in record.shifted.shifts))


def _line(seeds: Sequence[Record], name: str, against: Against | None) -> ShiftLine:
    parts = [record.shifted for record in seeds if record.shifted and name in record.shifted.shifts]
    shifts = [part.shifts[name] for part in parts]
    return ShiftLine(
        cell=seeds[0].cell,
        task=seeds[0].task,
        shift=name,
        meaning=shifts[0].meaning,
        read=fmean(100 * shift.read / part.rows for part, shift in zip(parts, shifts, strict=True)),
        plain=fmean(part.score for part in parts),
        score=fmean(shift.score for shift in shifts),
        change=fmean(shift.change.value for shift in shifts),
        low=fmean(shift.change.low for shift in shifts),
        high=fmean(shift.change.high for shift in shifts),
        against=against,
    )


def _against(cells: Sequence[Sequence[Record]], read: ReadPoints) -> dict[tuple[str, str, str], Against]:
    """By profile, cell and shift: how much more it costs the cell than SFT."""
    drops = {(seeds[0].profile, seeds[0].cell): row_drops(seeds, read) for seeds in cells}
    effects: dict[tuple[str, str, str], RowEffect] = {}
    for seeds in cells:
        first = seeds[0]
        own, sft = drops[first.profile, first.cell], drops.get((first.profile, f"{first.backbone}_{first.task}_{SFT.id}"), {})
        for name in own.keys() & sft.keys() if first.method != SFT.id else ():
            if len(own[name]) == len(sft[name]) and (own[name].any() or sft[name].any()):
                effects[first.profile, first.cell, name] = paired(sft[name].tolist(), own[name].tolist())
    p_values = holm({key: two_sided(effect) for key, effect in effects.items()})
    return {
        key: Against(points=effect.points, low=effect.low, high=effect.high, p=p_values[key]) for key, effect in effects.items()
    }


def row_drops(seeds: Sequence[Record], read: ReadPoints) -> dict[str, Array]:
    """By shift, the change of points of each row, as a mean over seeds."""
    known = [points for record in seeds if (points := read(record))]
    names = set.intersection(*(set(points) for points in known)) - {PLAIN} if known else set()
    return {name: np.mean([np.asarray(points[name]) - np.asarray(points[PLAIN]) for points in known], axis=0) for name in names}


def contrast_lines(records: Iterable[Record]) -> list[ContrastLine]:
    """A line for each cell and shift that turns answers."""
    found: list[ContrastLine] = []
    for seeds in by_cell(record for record in records if record.shifted):
        parts = [record.shifted for record in seeds if record.shifted]
        for name in dict.fromkeys(name for part in parts for name in part.contrasts):
            own = [part.contrasts[name] for part in parts if name in part.contrasts]
            found.append(
                ContrastLine(
                    cell=seeds[0].cell,
                    shift=name,
                    meaning=own[0].meaning,
                    pairs=own[0].pairs,
                    both=100 * sum(one.both for one in own) / sum(one.pairs for one in own),
                )
            )
    return found


# Tables


def shift_tables(records: Sequence[Record], read: ReadPoints) -> list[str]:
    """For each task a table of changes in points, cells down and shifts across; below it what methods lose beyond SFT.

    A change beyond SFT's that holds among all comparisons (Holm, 5 %) has a star.
    """
    known, contrasts = shift_lines(records, read), contrast_lines(records)
    told: list[str] = []
    for task in dict.fromkeys(line.task for line in known):
        own = [line for line in known if line.task == task]
        told += ["", *_table(own, contrasts, lambda line: signed(line.change, 1), "plain")]
        beyond = [line for line in own if line.against]
        told += ["", "beyond SFT's:", *_table(beyond, (), lambda line: _starred(line.against), "")] if beyond else []
    return told[1:]


def _starred(against: Against | None) -> str:
    return "-" if against is None else f"{against.points:+.1f}{'*' if against.p < 0.05 else ' '}"


def _table(
    known: Sequence[ShiftLine], contrasts: Sequence[ContrastLine], shown: Callable[[ShiftLine], str], plain: str
) -> list[str]:
    """Cells down, shifts across, the score on plain rows first, and last how many pairs of a contrast set are both right."""
    names = list(dict.fromkeys(line.shift for line in known))
    cells = list(dict.fromkeys(line.cell for line in known))
    turned = {(line.cell, line.shift): f"{line.both:.0f}%" for line in contrasts}
    turns = list(dict.fromkeys(line.shift for line in contrasts if line.cell in cells))
    columns = [
        Column(title="cell", width=15),
        *([Column(title=plain, width=5, right=True)] if plain else []),
        *(Column(title=name, width=5, right=True) for name in [*names, *turns]),
    ]
    by_place = {(line.cell, line.shift): line for line in known}
    rows = []
    for cell in cells:
        own = [by_place.get((cell, name)) for name in names]
        score = next(line.plain for line in own if line)
        figures = ["-" if line is None else shown(line) for line in own]
        rows.append(
            [cell, *([number(score, 1)] if plain else []), *figures, *(turned.get((cell, turn), "-") for turn in turns)]
        )
    return lines(columns, rows)
