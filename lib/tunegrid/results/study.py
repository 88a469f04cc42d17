"""Sets a run beside what the study published, with the audits' findings on it. Needs no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tunegrid import ROOT
from tunegrid.grid.cells import study_place
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.grid.tasks import score_title
from tunegrid.record import Record
from tunegrid.record.checks import impossible
from tunegrid.results.files import read_records
from tunegrid.results.status import cross_cell_audits
from tunegrid.results.table import Column, latex_float, lines, markdown, markdown_table, number, signed

STUDY = ROOT / "reports" / "study.json"
INSTEAD = {"rougeLsum": "rougeL"}  # which score the study printed where it did not print the main one
TITLE = "beside what was published"
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="score", width=12),
    Column(title="here", right=True),
    Column(title="published", right=True),
    Column(title="difference", right=True),
)
ALIKE = "rows, weights and caps may differ from those of the publication, and so may the scores"
OTHER = "the {} profile trains other backbones, on other rows: a difference says nothing of either side"


@dataclass(frozen=True, kw_only=True)
class StudyLine:
    """A score that the study reports, beside ours.

    Attributes:
        score: its name for readers.
    """

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
    """Figures side by side, and by cell what the audits find in the study's.

    Attributes:
        profile: of the run.
    """

    lines: Sequence[StudyLine]
    findings: Sequence[tuple[str, str]]
    profile: str = FULL_PROFILE.id

    @property
    def note(self) -> str:
        """How far the two can be compared."""
        return ALIKE if self.profile == FULL_PROFILE.id else OTHER.format(self.profile)


def compared(records: Sequence[Record], path: Path = STUDY) -> StudyComparison | None:
    """The study's figures of a run's cells; None where the run is of another profile than full, or has none of its cells."""
    if not any(record.profile == FULL_PROFILE.id for record in records):
        return None
    return beside(records, read_records(path).values(), findings(path))


def beside(
    records: Sequence[Record], published: Iterable[Record], told: Sequence[tuple[str, str]] = ()
) -> StudyComparison | None:
    """Published figures of the cells of a run; `told` are findings on any; None where the run has none of the cells."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(record.cell, []).append(record)
    reported = sorted((record for record in published if record.cell in cells), key=lambda record: study_place(record.cell))
    shown = [line for record in reported for line in _lines(cells[record.cell], record)]
    own = {record.cell for record in reported}
    known = [(cell, sentence) for cell, sentence in told if cell in own]
    return StudyComparison(lines=shown, findings=known, profile=records[0].profile) if shown else None


def findings(path: Path = STUDY) -> list[tuple[str, str]]:
    """What cannot be in the study's figures, by cell; two cells with the same results only show beside each other."""
    records = list(read_records(path).values())
    alone = [(record.cell, sentence) for record in records for sentence in impossible(record.scores)]
    found = [(cell, finding) for cell, findings in cross_cell_audits(records).items() for finding in findings]
    together = [(cell, finding.detail) for cell, finding in found if not finding.passed]
    return [*alone, *together]


def _lines(ours: Sequence[Record], reported: Record) -> list[StudyLine]:
    labels = ours[0].labels
    return [
        StudyLine(cell=reported.cell, score=score_title(name, labels), ours=_mean(ours, name), theirs=theirs)
        for name, theirs in reported.scores.items()
        if theirs is not None
    ]


def _mean(records: Sequence[Record], name: str) -> float | None:
    scores = [score for record in records if (score := record.scores.get(name)) is not None]
    return fmean(scores) if scores else None


# In words


def _rows(comparison: StudyComparison) -> list[tuple[str, ...]]:
    figures = [(line, line.ours, line.theirs, line.difference) for line in comparison.lines]
    return [(line.cell, line.score, number(ours, 1), number(theirs, 1), signed(gap, 1)) for line, ours, theirs, gap in figures]


def as_text(comparison: StudyComparison) -> str:
    """The two beside each other, and how far they can be compared."""
    return "\n".join(["", TITLE, *lines(COLUMNS, _rows(comparison)), comparison.note])


def as_markdown(comparison: StudyComparison) -> str:
    """The same for a pull request or a report."""
    table = markdown_table(COLUMNS, _rows(comparison))
    return "\n".join(["", f"**{markdown(TITLE)}**", "", *table, "", f"* {markdown(comparison.note)}"])


def as_latex(comparison: StudyComparison) -> str:
    """The same for a paper."""
    return "\n".join(["", *latex_float(TITLE, COLUMNS, _rows(comparison), [comparison.note])])


FORMATS: Mapping[str, Callable[[StudyComparison], str]] = {"text": as_text, "markdown": as_markdown, "latex": as_latex}
