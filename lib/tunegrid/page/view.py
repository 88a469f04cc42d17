"""Makes the `Page`, plain data that templates print, of a run, older runs and the gate's judgements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from tunegrid.page import charts
from tunegrid.page.cells import LEDGER, CellView, cell_view
from tunegrid.page.history import RunHistory, history_of
from tunegrid.page.runs import PageRun, judged
from tunegrid.page.settings import Environment, environment_of
from tunegrid.page.verdict import Headline, headline
from tunegrid.record import Record
from tunegrid.results.answer import RunAnswer, answer_of
from tunegrid.results.calibration import CalibrationLine, calibration_lines
from tunegrid.results.compare import PEAK, SECONDS, TRAINED, fronts
from tunegrid.results.examples import read_shifted
from tunegrid.results.forgetting import ForgettingLine, forgetting_lines
from tunegrid.results.judgements import Judgement, Verdict, by_cell
from tunegrid.results.merges import MergeLine, merge_lines
from tunegrid.results.shifted import ContrastLine, ShiftLine, contrast_lines, shift_lines
from tunegrid.results.study import StudyComparison, compared

ROWS_A_CELL, ROWS_A_PAGE = 30, 900
RATE = "train_samples_per_second"
LENGTHS: dict[str, Callable[[CellView], float]] = {
    "ledger": lambda cell: sum(count or 0 for count in cell.ledger),
    "peaks": lambda cell: sum(added for _, _, added in cell.peaks),
    "rate": lambda cell: max(cell.rate(RATE) or 0, cell.rate(RATE, old=True) or 0),
}
COUNTERS = {"gpu_energy_joules": "GPU", "cpu_energy_joules": "CPU"}
AXES = {TRAINED: "trainable bytes", PEAK: "peak GiB", SECONDS: "train seconds"}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one task: backbones down, methods across."""

    task: str
    cells: Sequence[CellView]

    @cached_property
    def methods(self) -> list[str]:
        """Columns."""
        return list(dict.fromkeys(cell.first.method for cell in self.cells))

    @cached_property
    def lines(self) -> list[tuple[str, list[CellView | None]]]:
        """A backbone and its cells, None where the grid has none."""
        by_position = {(cell.first.backbone, cell.first.method): cell for cell in self.cells}
        backbones = dict.fromkeys(cell.first.backbone for cell in self.cells)
        return [(backbone, [by_position.get((backbone, method)) for method in self.methods]) for backbone in backbones]

    @cached_property
    def scatters(self) -> list[tuple[str, charts.Scatter]]:
        """Quality against each cost that was measured."""
        drawn = [(name, charts.scatter(self._dots(cost))) for cost, name in AXES.items()]
        return [(name, chart) for name, chart in drawn if chart]

    @cached_property
    def fronts(self) -> dict[str, set[str]]:
        """The cells on the front of each cost, backbone by backbone."""
        cells: dict[str, set[str]] = {cost: set() for cost in AXES}
        for _, methods in self.lines:
            for cost, best in fronts([cell.entry for cell in methods if cell and cell.entry.records]).items():
                cells[cost] |= {entry.first.cell for entry in best}
        return cells

    def on_fronts(self, cell: CellView) -> list[str]:
        """The costs at which no other method of its backbone is as good for as little."""
        return [name for cost, name in AXES.items() if cell.id in self.fronts[cost]]

    def _dots(self, cost: str) -> list[charts.Dot]:
        dots = []
        for cell in self.cells:
            figure = cell.entry.costs[cost] if cell.entry.records else None
            if figure is not None and cell.score is not None:
                low, high = (cell.score if end is None else end for end in (cell.low, cell.high))
                shape = str(self.methods.index(cell.first.method) % 4)
                front = cell.first.backbone if cell.id in self.fronts[cost] else ""
                name = f"{cell.first.backbone} {cell.first.method}"
                dots.append(charts.Dot(name=name, front=front, shape=shape, cost=figure, score=cell.score, low=low, high=high))
        return dots


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What the cells of one task forgot, and how well they do it."""

    task: str
    score: str
    lines: Sequence[ForgettingLine]

    @cached_property
    def methods(self) -> list[str]:
        """In the order of the cells."""
        return list(dict.fromkeys(line.method for line in self.lines))

    @cached_property
    def chart(self) -> charts.Scatter | None:
        """The score against the change of the backbone's own loss."""
        return charts.scatter([dot for line in self.lines for dot in self._dots(line)], log=False)

    def _dots(self, line: ForgettingLine) -> list[charts.Dot]:
        if line.change is None or line.score is None:
            return []
        shape, name = str(self.methods.index(line.method) % 4), f"{line.backbone} {line.method}"
        figures = {"cost": line.change, "score": line.score, "low": line.score, "high": line.score}
        return [charts.Dot(name=name, front="", shape=shape, **figures)]


@dataclass(frozen=True, kw_only=True)
class Shifts:
    """What shifts cost the cells of one task."""

    task: str
    lines: Sequence[ShiftLine]
    contrasts: Sequence[ContrastLine]

    @cached_property
    def names(self) -> list[str]:
        """The shifts that change any of its rows."""
        return list(dict.fromkeys(line.shift for line in self.lines))

    @cached_property
    def cells(self) -> dict[str, dict[str, ShiftLine]]:
        """By cell and shift."""
        cells: dict[str, dict[str, ShiftLine]] = {}
        for line in self.lines:
            cells.setdefault(line.cell, {})[line.shift] = line
        return cells

    @property
    def meanings(self) -> dict[str, str]:
        """What each shift changes."""
        return {line.shift: line.meaning for line in self.lines} | {line.shift: line.meaning for line in self.contrasts}

    @property
    def turns(self) -> list[str]:
        """The shifts that turn the right answer."""
        return list(dict.fromkeys(line.shift for line in self.contrasts))

    def followed(self, cell: str, shift: str) -> ContrastLine | None:
        """How often a cell's answers follow such a shift."""
        return next((line for line in self.contrasts if (line.cell, line.shift) == (cell, shift)), None)


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a page shows.

    Attributes:
        older: the runs to compare with, the one that judges first.
        judged: the gate's judgements by the first older run.
        remarks: what is missing or left out, as sentences.
    """

    run: PageRun
    older: Sequence[PageRun]
    head: Headline
    cells: Sequence[CellView]
    judged: Sequence[Judgement]
    remarks: Sequence[str]
    history: RunHistory | None
    study: StudyComparison | None
    missing: Sequence[Judgement] = field(default=())

    @cached_property
    def groups(self) -> list[Group]:
        """The cells by task."""
        tasks = dict.fromkeys(cell.first.task for cell in self.cells)
        return [Group(task=task, cells=[cell for cell in self.cells if cell.first.task == task]) for task in tasks]

    @cached_property
    def environment(self) -> Environment:
        """What this run's cells ran in."""
        return environment_of(self.run.records)

    @cached_property
    def before(self) -> Mapping[str, Sequence[str]]:
        """The versions of the run that judges."""
        return environment_of(self.older[0].records).versions if self.older else {}

    @property
    def changed(self) -> list[CellView]:
        """The cells that are other than before, the largest change first; those that broke off before all."""
        changed = [cell for cell in self.cells if cell.changed]
        return sorted(changed, key=lambda cell: (cell.score is not None, -abs(cell.change or 0.0)))

    @property
    def footprint(self) -> bool:
        """Whether cells were measured, not scored."""
        return self.run.profile == "footprint"

    @cached_property
    def merges(self) -> list[MergeLine]:
        """What merges of adapters over packed bases do; none where none was merged."""
        return merge_lines(record for cell in self.cells for record in cell.records)

    @cached_property
    def calibration(self) -> list[CalibrationLine]:
        """How well confidence fits hits, a line for each cell whose outputs tell."""
        return calibration_lines(record for cell in self.cells for record in cell.records)

    @cached_property
    def forgotten(self) -> list[Forgotten]:
        """What backbones forgot, by task; none where none was asked."""
        known = forgetting_lines(record for cell in self.cells for record in cell.records)
        scores = {cell.first.task: cell.first.main_score for cell in self.cells}
        tasks = dict.fromkeys(line.task for line in known)
        return [Forgotten(task=task, score=scores[task], lines=[line for line in known if line.task == task]) for task in tasks]

    @cached_property
    def shifts(self) -> list[Shifts]:
        """What changes of rows cost, by task; none where none was scored."""
        records = [record for cell in self.cells for record in cell.records]
        known, contrasts = shift_lines(records, partial(read_shifted, run=self.run.path)), contrast_lines(records)
        tasks = dict.fromkeys(line.task for line in known)
        return [
            Shifts(
                task=task,
                lines=[line for line in known if line.task == task],
                contrasts=[line for line in contrasts if line.cell.split("_")[1] == task],
            )
            for task in tasks
        ]

    @property
    def meanings(self) -> dict[str, str]:
        """What each shift of any task changes."""
        return {name: meaning for group in self.shifts for name, meaning in group.meanings.items()}

    @property
    def domains(self) -> list[Record]:
        """The records that were scored on another data set, too."""
        records = (record for cell in self.cells for record in cell.records)
        return [record for record in records if record.shifted and record.shifted.domain]

    @property
    def ledger_places(self) -> list[int]:
        """The places of `LEDGER` that any cell has a figure for."""
        return [index for index in range(len(LEDGER)) if any(cell.ledger[index] is not None for cell in self.cells)]

    @property
    def phases(self) -> list[str]:
        """The phases that any cell has a peak of, in their order."""
        return list(dict.fromkeys(name for cell in self.cells for name, _, _ in cell.peaks))

    @property
    def counters(self) -> dict[str, str]:
        """The counters of energy that any cell was measured by, with their names."""
        return {figure: name for figure, name in COUNTERS.items() if any(cell.joules(figure) for cell in self.cells)}

    @property
    def energy_sources(self) -> list[str]:
        """What was counted, or why it was not."""
        return list(dict.fromkeys(r.device.energy for r in self.run.records if r.device and r.device.energy))

    def longest(self, name: str) -> float:
        """The largest figure of a kind of bars."""
        return max((LENGTHS[name](cell) for cell in self.cells), default=0.0)


def page_of(
    run: PageRun,
    older: Sequence[PageRun] = (),
    *,
    verdicts: Sequence[Judgement] | None = None,
    answer: RunAnswer | None = None,
) -> Page:
    """The page of a run.

    Args:
        run: of one profile, or empty.
        older: runs to compare with; the first one judges.
        verdicts: the gate's, where a session has judged already.
        answer: the session's, where there was one.
    """
    baseline = older[0] if older else None
    judgements, remarks = (list(verdicts or ()), []) if verdicts is not None or not baseline else judged(baseline, run)
    limit = max(4, min(ROWS_A_CELL, ROWS_A_PAGE // max(1, len(run.by_cell))))
    judged_cells = by_cell(judgements)
    cells = [cell_view(run, baseline, cell, judged_cells.get(cell, []), limit) for cell in run.by_cell]
    before = baseline.records if baseline else ()
    own = answer or answer_of(run.records, judgements, baseline=baseline.name if baseline else "", before=before)
    return Page(
        run=run,
        older=older,
        head=headline(own, cells, judgements, remarks),
        cells=cells,
        judged=judgements,
        remarks=[*remarks, *run.remarks, *(remark for one in older for remark in one.remarks)],
        history=history_of(run, older, judgements),
        study=compared(run.records),
        missing=[j for j in judgements if j.verdict is Verdict.MISSING and j.cell not in run.by_cell],
    )
