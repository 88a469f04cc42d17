"""What a page says, as plain data. In: a run, older runs, the gate's judgements. Out: a `Page` that templates print."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lib.page import charts
from lib.page.cells import LEDGER, CellView, cell_view
from lib.page.history import Story, story_of
from lib.page.runs import PageRun, judged
from lib.page.study import Comparison, compared
from lib.page.verdict import Headline, headline
from lib.results.answer import Answer, answer_of
from lib.results.judgements import Judgement, Verdict, by_cell

ROWS_A_CELL, ROWS_A_PAGE = 30, 900
RATE = "train_samples_per_second"
LENGTHS: dict[str, Callable[[CellView], float]] = {
    "ledger": lambda cell: sum(count or 0 for count in cell.ledger),
    "peaks": lambda cell: sum(added for _, _, added in cell.peaks),
    "rate": lambda cell: max(cell.rate(RATE) or 0, cell.rate(RATE, old=True) or 0),
}
COSTS = ("trainable bytes", "peak GiB", "train seconds")


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
        places = {(cell.first.backbone, cell.first.method): cell for cell in self.cells}
        backbones = dict.fromkeys(cell.first.backbone for cell in self.cells)
        return [(backbone, [places.get((backbone, method)) for method in self.methods]) for backbone in backbones]

    @cached_property
    def scatters(self) -> list[tuple[str, charts.Scatter]]:
        """Quality against each cost that was measured."""
        drawn = [(name, charts.scatter(self._dots(place))) for place, name in enumerate(COSTS)]
        return [(name, chart) for name, chart in drawn if chart]

    def on_fronts(self, cell: CellView) -> list[str]:
        """The costs at which no other cell of the task is as good for as little."""
        return [name for name, chart in self.scatters if any(m.on_front and m.dot.name == _label(cell) for m in chart.marks)]

    def _dots(self, cost: int) -> list[charts.Dot]:
        dots = []
        for cell in self.cells:
            figure = (cell.trained_bytes, cell.peak, cell.train_seconds)[cost]
            if figure is not None and cell.score is not None:
                low, high = (cell.score if end is None else end for end in (cell.low, cell.high))
                shape = self.methods.index(cell.first.method) % 4
                dot = charts.Dot(name=_label(cell), shape=f"{shape}", cost=figure, score=cell.score, low=low, high=high)
                dots.append(dot)
        return dots


def _label(cell: CellView) -> str:
    return f"{cell.first.backbone} {cell.first.method}"


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
    story: Story | None
    study: Comparison | None
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
        return [place for place in range(len(LEDGER)) if any(cell.ledger[place] is not None for cell in self.cells)]

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
    answer: Answer | None = None,
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
        story=story_of(run, older, judgements),
        study=compared(run),
        missing=[judgement for judgement in judgements if judgement.verdict is Verdict.MISSING],
    )
