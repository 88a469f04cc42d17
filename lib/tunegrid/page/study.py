"""Sets a run of the full profile beside what the study published, with the audits' findings on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegrid.page.runs import PageRun, mean
from tunegrid.record import Record
from tunegrid.results.claims import STUDY, findings
from tunegrid.results.files import read_records


@dataclass(frozen=True, kw_only=True)
class StudyLine:
    """A score that the study reports, beside ours."""

    cell: str
    score: str
    ours: float | None
    theirs: float

    @property
    def difference(self) -> float | None:
        """Ours minus the study's."""
        return None if self.ours is None else self.ours - self.theirs


@dataclass(frozen=True, kw_only=True)
class StudyComparison:
    """Figures side by side, and by cell what the audits find in the study's."""

    lines: Sequence[StudyLine]
    findings: Sequence[tuple[str, str]]


def compared(run: PageRun, path: Path = STUDY) -> StudyComparison | None:
    """The study's figures of the run's cells; None where the run is of another profile, or has none of its cells."""
    if run.profile != "full":
        return None
    reported = {cell: record for cell, record in read_records(path).items() if cell in run.by_cell}
    lines = [line for cell, record in reported.items() for line in _lines(run.by_cell[cell], record)]
    if not lines:
        return None
    return StudyComparison(lines=lines, findings=[(cell, sentence) for cell, sentence in findings(path) if cell in reported])


def _lines(ours: Sequence[Record], reported: Record) -> list[StudyLine]:
    return [
        StudyLine(cell=reported.cell, score=name, ours=mean(record.scores.get(name) for record in ours), theirs=theirs)
        for name, theirs in reported.scores.items()
        if theirs is not None
    ]
