"""Ends a run, whoever ran its cells: compares the cells, prints them, and saves them with their rows.

A session (also one with `--resume`, workers, `--isolate` or `--engine ray`) and `merge` end here, so that equal records make an
equal run. What comes in stays as it is, as the journal has it: what only the cells together show goes into new
records.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import Record, to_json
from tunegrid.results import run_table
from tunegrid.results.alike import unlike_pairs
from tunegrid.results.examples import keep_beside
from tunegrid.results.failures import told_by_cause
from tunegrid.results.files import BenchmarkRow, RunJson, save
from tunegrid.results.status import compared_together, contradicts, too_short

Key = TypeVar("Key", bound=Hashable)  # of a row and its record


@dataclass(frozen=True)
class TerminalLine:
    """A line on the terminal."""

    text: str
    colour: Literal["", "green", "yellow", "red"] = ""


COLOURS: Mapping[str, Literal["", "green"]] = {"passed": "green", "begun": ""}  # of a cell's line; others are red


def name_of(row: BenchmarkRow) -> str:
    """Of a row's test."""
    return str(row.get("fullname") or row.get("name"))


class FinishedRun(Generic[Key]):
    """A run whose cells have all ended.

    Attributes:
        records: of its cells, with what they show together.
    """

    def __init__(self, records: Mapping[Key, Record]) -> None:
        """The run of these cells."""
        self.records = dict(zip(records, compared_together(list(records.values())), strict=True))

    @property
    def contradicted(self) -> bool:
        """Whether cells beside each other show that some of them cannot be right."""
        return any(map(contradicts, self.records.values()))

    def rows(self, rows: Mapping[Key, BenchmarkRow]) -> list[BenchmarkRow]:
        """The rows by name, those of cells with their records as they are now."""
        updated = {key: row | {"extra_info": to_json(self.records[key])} for key, row in rows.items() if key in self.records}
        return sorted((updated.get(key, row) for key, row in rows.items()), key=name_of)

    def save(self, run: RunJson, path: Path, *, beside: Collection[Path] = (), examples: bool = True) -> None:
        """Write the run, and the examples of its cells next to it; whole, or not at all.

        Args:
            run: with its rows, as `rows` gives them.
            path: of the run's file.
            beside: runs that the examples may lie next to, where this machine's store does not have them.
            examples: whether to write them.

        Raises:
            InputError: where the disk has no room.
        """
        save(run, path)
        if examples:
            self.keep_examples(path, beside)

    def keep_examples(self, path: Path, beside: Collection[Path] = ()) -> None:
        """Copy the examples of the cells next to a run; raises InputError where the disk has no room."""
        try:
            keep_beside(self.records.values(), path, *beside)
        except OSError as error:
            raise InputError(f"the examples of {path} cannot be written ({error.strerror or error})") from None

    def lines(self, cells: Sequence[str] = STUDY_IDS, seconds: float | None = None) -> Iterable[TerminalLine]:
        """What is told of the run: one line per cell over its seeds, and what was missed by its cause.

        Args:
            cells: ids in the order of their lines.
            seconds: that the session took; None where nobody knows.
        """
        order = {cell: index for index, cell in enumerate(cells)}
        records = sorted(
            self.records.values(), key=lambda r: (r.profile, order.get(r.cell, len(order)), r.cell, r.seeds.seed or 0)
        )
        if not records:
            return
        yield TerminalLine(run_table.header(records))
        for text, status in run_table.rows(records):
            yield TerminalLine(text, COLOURS.get(status, "red"))
        yield TerminalLine(run_table.footer(records, seconds))
        yield from (TerminalLine(line, "red") for line in told_by_cause(records))
        yield from (TerminalLine(sentence, "yellow") for record in records for sentence in too_short(record))
        if pairs := unlike_pairs(records):
            yield TerminalLine(f"{len(pairs)} pairs of methods are not like for like: tunegrid compare RUN.json says in what")
