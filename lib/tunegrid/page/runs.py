"""Reads the runs that a page shows, as `PageRun`s with the gate's verdicts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

from tunegrid.errors import InputError
from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.results.alike import check_rows
from tunegrid.results.files import SavedRun, read_saved
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Judgement
from tunegrid.results.table import some


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """A run of one profile.

    Attributes:
        name: of its file.
        when: the ISO date and time at which it was saved, in UTC.
        commit: of the suite that ran it.
        command: that ran it; empty where nobody knows.
        remarks: what the page leaves out of it, as sentences.
    """

    name: str
    records: Sequence[Record]
    path: Path | None = None
    when: str = ""
    commit: str = ""
    command: str = ""
    remarks: tuple[str, ...] = ()

    @cached_property
    def by_cell(self) -> Mapping[str, list[Record]]:
        """The records of each cell, in the study's order: one per seed, the lowest seed first."""
        cells: dict[str, list[Record]] = defaultdict(list)
        for record in sorted(self.records, key=lambda record: record.seeds.seed or 0):
            cells[record.cell].append(record)
        return {cell: cells[cell] for cell in sorted(cells, key=study_place)}

    @property
    def profile(self) -> str:
        """The profile of all its records; empty where it has none."""
        return self.records[0].profile if self.records else ""

    @property
    def reported(self) -> bool:
        """Whether it was published elsewhere, and nothing ran here."""
        return bool(self.records) and all(record.status == "reported" for record in self.records)

    def score(self, cell: str) -> float | None:
        """The mean main score of a cell's seeds."""
        return mean(record.scores.get(record.main_score) for record in self.by_cell.get(cell, ()))


def mean(figures: Iterable[float | None]) -> float | None:
    """The mean of what was measured."""
    numbers = [figure for figure in figures if figure is not None]
    return fmean(numbers) if numbers else None


def read_page_run(path: Path, profile: str | None = None) -> PageRun:
    """A saved run; raises InputError, in one sentence, where the file cannot be read."""
    return page_run(read_saved(path), profile)


def page_run(saved: SavedRun, profile: str | None = None) -> PageRun:
    """A saved run that was read before."""
    run = PageRun(
        name=saved.path.name,
        records=saved.records,
        path=saved.path,
        when=saved.when,
        commit=saved.commit,
        command=saved.command,
    )
    return of_profile(run, profile)


def of_profile(run: PageRun, profile: str | None = None) -> PageRun:
    """The run's records of this profile; by default of the one with most records. Raises InputError where it has none."""
    profiles = [record.profile for record in run.records]
    names = sorted(set(profiles), key=lambda name: (-profiles.count(name), name))
    if profile is not None and profile not in names:
        raise InputError(f"{run.name} holds no cells of {profile}, but of {' and '.join(names) or 'nothing'}")
    chosen = profile or next(iter(names), "")
    left_out = [f"{profiles.count(name)} of {name}" for name in names if name != chosen]
    advice = f"{run.name} also holds records of another profile ({', '.join(left_out)}): --profile shows those"
    kept = [record for record in run.records if record.profile == chosen]
    return replace(run, records=kept, remarks=(*run.remarks, advice) if left_out else run.remarks)


def judged(old: PageRun, new: PageRun) -> tuple[list[Judgement], list[str]]:
    """The gate's verdicts on the cells that can be compared, and a sentence for what cannot."""
    try:
        before, after = Run.of(old.records, old.path), Run.of(new.records, new.path)
        unlike = [cell for cell in after.records if cell in before.records and not _same_rows(old, new, cell)]
        told = f"{old.name} scored other test rows in {some(unlike)}: its figures are shown, but not paired or judged"
        remarks = [told] if unlike else []
        before, after = (run.only(run.records.keys() - set(unlike)) for run in (before, after))
        common = before.records.keys() & after.records.keys()
        if not common:
            return [], remarks or [f"{old.name} and {new.name} have no finished cell in common, so nothing is compared"]
        return gate(before, after), remarks
    except InputError as error:
        return [], [f"not compared with {old.name}: {error}"]


def _same_rows(old: PageRun, new: PageRun, cell: str) -> bool:
    try:
        for before in old.by_cell[cell]:
            check_rows(before, new.by_cell[cell][0])
    except InputError:
        return False
    return True
