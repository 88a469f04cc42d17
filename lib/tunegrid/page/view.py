"""Makes the `Page`, plain data that templates print, of a run, older runs and the gate's judgements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tunegrid.page import charts
from tunegrid.page.cells import LEDGER, CellView, cell_view
from tunegrid.page.history import RunHistory, history_of
from tunegrid.page.runs import PageRun, judged
from tunegrid.page.study import StudyComparison, compared
from tunegrid.page.verdict import Headline, headline
from tunegrid.results.answer import RunAnswer, answer_of
from tunegrid.results.compare import PEAK, SECONDS, TRAINED, fronts
from tunegrid.results.judgements import Judgement, Verdict, by_cell

ROWS_A_CELL, ROWS_A_PAGE = 30, 900
RATE = "train_samples_per_second"
LENGTHS: dict[str, Callable[[CellView], float]] = {
    "ledger": lambda cell: sum(count or 0 for count in cell.ledger),
    "peaks": lambda cell: sum(added for _, _, added in cell.peaks),
    "rate": lambda cell: max(cell.rate(RATE) or 0, cell.rate(RATE, old=True) or 0),
}
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

    @property
    def footprint(self) -> bool:
        """Whether cells were measured, not scored."""
        return self.run.profile == "footprint"

    @property
    def ledger_places(self) -> list[int]:
        """The places of `LEDGER` that any cell has a figure for."""
        return [index for index in range(len(LEDGER)) if any(cell.ledger[index] is not None for cell in self.cells)]

    @property
    def phases(self) -> list[str]:
        """The phases that any cell has a peak of, in their order."""
        return list(dict.fromkeys(name for cell in self.cells for name, _, _ in cell.peaks))

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
    own = answer or answer_of(run.records, judgements, baseline=baseline.name if baseline else "")
    return Page(
        run=run,
        older=older,
        head=headline(own, cells, remarks),
        cells=cells,
        judged=judgements,
        remarks=[*remarks, *run.remarks, *(remark for one in older for remark in one.remarks)],
        history=history_of(run, older, judgements),
        study=compared(run),
        missing=[judgement for judgement in judgements if judgement.verdict is Verdict.MISSING],
    )
