"""Makes the `Page`, plain data that templates print, of a run, older runs and the gate's judgements."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tunegrid.errors import InputError
from tunegrid.page import charts
from tunegrid.page.cells import LEDGER, CellView, Environment, cell_view, environment_of
from tunegrid.page.runs import PageRun, judged
from tunegrid.page.verdict import Headline, headline
from tunegrid.results.alike import check_alike
from tunegrid.results.answer import RunAnswer, answer_of
from tunegrid.results.compare import PEAK, SECONDS, TENSORS, TRAINED, Comparison, beside_each_other, entry_of, summary
from tunegrid.results.judgements import Judgement, Verdict, by_cell, worst
from tunegrid.results.noise import load_noise
from tunegrid.results.study import StudyComparison, compared

if TYPE_CHECKING:
    from tunegrid.results.report import Section

Step = tuple[float | None, Verdict | None]  # a score, and the verdict after the run before


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """Scores over runs.

    Attributes:
        runs: the oldest first.
        steps: by cell, one per run.
        remarks: what could not be compared.
    """

    runs: Sequence[PageRun]
    steps: Mapping[str, Sequence[Step]]
    remarks: Sequence[str]

    def spark(self, cell: str) -> charts.Spark | None:
        """A small line of a cell's scores, on the scale of all cells of its task."""
        task = cell.split("_")[1]
        like = [steps for other, steps in self.steps.items() if other.split("_")[1] == task]
        shared = [score for steps in like for score, _ in steps if score is not None]
        return charts.spark([score for score, _ in self.steps[cell]], shared, self.times)

    @cached_property
    def times(self) -> list[float] | None:
        """When the runs were saved, in seconds; None where a file does not say, or all were saved at once."""
        times = [when(run.when) for run in self.runs]
        known = [time.timestamp() for time in times if time]
        return known if len(known) == len(times) and known[0] < known[-1] else None

    @property
    def axis(self) -> charts.TimeAxis | None:
        """The axis of the small lines."""
        first, last = when(self.runs[0].when), when(self.runs[-1].when)
        if self.times is None or first is None or last is None:
            return None
        same_day = first.date() == last.date()
        labels = [f"{time:%H:%M}" if same_day else f"{time:%Y-%m-%d}" for time in (first, last)]
        return charts.TimeAxis(labels=(labels[0], labels[1]), ticks=[charts.along(self.times)(time) for time in self.times])


def when(text: str) -> datetime | None:
    """The time of an ISO date, in UTC where it names no zone; None for any other text."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def history_of(run: PageRun, older: Sequence[PageRun], known: Sequence[Judgement]) -> RunHistory | None:
    """The history that ends with this run; None without older runs. `known` judges it by the first of them."""
    if not older:
        return None
    runs = [*sorted(older, key=lambda one: one.when), run]
    pairs = list(pairwise(runs))
    answers = [(known, []) if old is older[0] and new is run else judged(old, new) for old, new in pairs]
    verdicts = [
        {cell: worst(j for j in own if j.decides and j.kind == "quality") for cell, own in by_cell(judgements).items()}
        for judgements, _ in answers
    ]
    cells = dict.fromkeys(cell for one in reversed(runs) for cell in one.by_cell)
    steps = {
        cell: [(one.score(cell), verdicts[i - 1].get(cell) if i else None) for i, one in enumerate(runs)] for cell in cells
    }
    remarks = dict.fromkeys(remark for _, found in answers for remark in found)
    return RunHistory(runs=runs, steps=steps, remarks=list(remarks))


ROWS_A_CELL, ROWS_A_PAGE = 30, 900
RATE = "train_samples_per_second"
LENGTHS: dict[str, Callable[[CellView], float]] = {
    "ledger": lambda cell: sum(count or 0 for count in cell.ledger),
    "peak": lambda cell: cell.peak or 0.0,
    "rate": lambda cell: max(cell.rate(RATE) or 0, cell.rate(RATE, old=True) or 0),
}
COUNTERS = {"gpu_energy_joules": "GPU", "cpu_energy_joules": "CPU"}
AXES = {TRAINED: "trainable bytes", TENSORS: "bytes of tensors", PEAK: "peak GiB", SECONDS: "train seconds"}
MOST_COLUMNS = 6  # of methods, in the grid
MOST_OPEN = 3  # cells
NO_PEAKS = "No front is over memory peaks: processes may have run several cells, and a peak holds what earlier ones left; "
INSTEAD = "bytes of weights, gradients and optimizer state stand in their place."
NOTHING_INSTEAD = "and bytes of tensors, which could stand in their place, are not known of every cell."


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Charts of quality against each cost, of one backbone or of all."""

    backbone: str
    charts: Sequence[tuple[str, charts.Scatter]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one task, and what `tunegrid compare` says of them: a comparison for each backbone."""

    task: str
    cells: Sequence[CellView]
    comparisons: Sequence[Comparison] = ()

    @cached_property
    def scores(self) -> list[str]:
        """Names of its cells' main scores: one, but where a publication has another one in some cells."""
        return list(dict.fromkeys(cell.main_score for cell in self.cells))

    @cached_property
    def methods(self) -> list[str]:
        """In the order of the cells."""
        return list(dict.fromkeys(cell.first.method for cell in self.cells))

    @cached_property
    def backbones(self) -> list[str]:
        """In the order of the cells."""
        return list(dict.fromkeys(cell.first.backbone for cell in self.cells))

    @property
    def methods_are_rows(self) -> bool:
        """Many methods stand below each other, a few beside each other."""
        return len(self.methods) > max(len(self.backbones), MOST_COLUMNS)

    @property
    def columns(self) -> list[str]:
        """Methods, or the backbones where methods are rows."""
        return self.backbones if self.methods_are_rows else self.methods

    @cached_property
    def lines(self) -> list[tuple[str, list[CellView | None]]]:
        """A row's name and its cells, None where the grid has none."""
        cells = {(cell.first.backbone, cell.first.method): cell for cell in self.cells}
        if self.methods_are_rows:
            return [(method, [cells.get((backbone, method)) for backbone in self.backbones]) for method in self.methods]
        return [(backbone, [cells.get((backbone, method)) for method in self.methods]) for backbone in self.backbones]

    @cached_property
    def looks(self) -> charts.Looks:
        """The marks of its charts."""
        return charts.Looks(self.methods, self.backbones)

    @property
    def axes(self) -> list[str]:
        """The costs that are drawn: of memory the peak where it is each cell's own, or else the bytes of tensors."""
        memory = PEAK if all(PEAK in one.costs for one in self.comparisons) else TENSORS
        return [TRAINED, memory, SECONDS]

    @cached_property
    def panels(self) -> list[Panel]:
        """Quality against each cost that was measured."""
        apart = [[one] for one in self.comparisons]
        shown = [self.comparisons] if self.looks.together else apart
        drawn = [
            Panel(backbone="" if self.looks.together else own[0].backbone, charts=self._charts(own)) for own in shown if own
        ]
        return [panel for panel in drawn if panel.charts]

    def _charts(self, comparisons: Sequence[Comparison]) -> list[tuple[str, charts.Scatter]]:
        drawn = [
            (AXES[cost], charts.scatter([dot for one in comparisons for dot in self._dots(one, cost)])) for cost in self.axes
        ]
        return [(name, chart) for name, chart in drawn if chart]

    def _dots(self, comparison: Comparison, cost: str) -> Iterator[charts.Dot]:
        front = comparison.on_front(cost)
        for entry in comparison.entries:
            figure, interval = entry.costs[cost], comparison.chance.interval(entry) if entry.scores else None
            if figure is None or not entry.scores:
                continue
            yield charts.Dot(
                name=f"{comparison.backbone} {entry.method}" if self.looks.together else entry.method,
                front=comparison.backbone if entry.method in front else "",
                look=self.looks.of(comparison.backbone, entry.method),
                cost=figure,
                score=entry.score,
                low=interval.low if interval else entry.score,
                high=interval.high if interval else entry.score,
            )


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a page shows.

    Attributes:
        older: the runs to compare with, the one that judges first.
        judged: the gate's judgements by the first older run.
        comparisons: what `tunegrid compare` says of the run; empty where its seeds are not of one experiment.
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
    comparisons: Sequence[Comparison] = ()
    missing: Sequence[Judgement] = field(default=())

    @cached_property
    def groups(self) -> list[Group]:
        """The cells by task."""
        tasks = dict.fromkeys(cell.first.task for cell in self.cells)
        return [
            Group(
                task=task,
                cells=[cell for cell in self.cells if cell.first.task == task],
                comparisons=[one for one in self.comparisons if one.task == task],
            )
            for task in tasks
        ]

    @property
    def why_no_peaks(self) -> str:
        """Why no front is over memory peaks, and what stands in their place; empty where one is."""
        if not any(one.peaks_are_shared for one in self.comparisons):
            return ""
        known = any(TENSORS in one.fronts for one in self.comparisons)
        return NO_PEAKS + (INSTEAD if known else NOTHING_INSTEAD)

    @cached_property
    def loss_axes(self) -> dict[str, charts.Extent]:
        """By task, the axes that the small curves of its cells share."""
        both = {group.task: [cell.losses(old=old) for cell in group.cells for old in (False, True)] for group in self.groups}
        return {task: charts.extent(curves) for task, curves in both.items()}

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
    def has_charts(self) -> bool:
        """Whether scores stand against any cost."""
        return not self.footprint and any(group.panels for group in self.groups)

    @property
    def has_costs(self) -> bool:
        """Whether anything was measured of what cells need, or any of them trained."""
        return any(map(self.longest, LENGTHS)) or any(cell.losses() for cell in self.cells)

    @property
    def footprint(self) -> bool:
        """Whether cells were measured, not scored."""
        return self.run.profile == "footprint"

    @cached_property
    def figures(self) -> list["Section"]:
        """What cells were asked beside their scores, a table an instrument."""
        records = [record for cell in self.cells for record in cell.records]
        if not any(record.instruments for record in records):
            return []
        from tunegrid.results.figures import tables  # pandas, which takes a third of a second

        return list(tables(records, self.run.path))

    @property
    def counts(self) -> list[tuple[str, ...]]:
        """By task and method, on how many backbones it is among the best, and on the front."""
        return summary(self.comparisons)

    def opens(self, cell: CellView) -> bool:
        """Whether a cell is shown without being asked for: one that failed, where few did, or the only one."""
        failed = [one for one in self.cells if one.status not in ("passed", "reported", "begun")]
        return len(self.cells) == 1 or (cell in failed and len(failed) <= MOST_OPEN)

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
    comparisons, unlike = comparisons_of(run)
    intervals = {e.first.cell: one.chance.interval(e) for one in comparisons for e in one.entries if e.scores}
    cells = [cell_view(run, baseline, cell, judged_cells.get(cell, []), intervals.get(cell), limit) for cell in run.by_cell]
    before = baseline.records if baseline else ()
    own = answer or answer_of(run.records, judgements, baseline=baseline.name if baseline else "", before=before)
    return Page(
        run=run,
        older=older,
        head=headline(own, cells, judgements, remarks),
        cells=cells,
        judged=judgements,
        remarks=[*remarks, *unlike, *run.remarks, *(remark for one in older for remark in one.remarks)],
        history=history_of(run, older, judgements),
        study=compared(run.records),
        comparisons=comparisons,
        missing=[j for j in judgements if j.verdict is Verdict.MISSING and j.cell not in run.by_cell],
    )


def comparisons_of(run: PageRun) -> tuple[list[Comparison], list[str]]:
    """What `tunegrid compare` says of the cells that finished; or a sentence why it says nothing."""
    finished = [[record for record in records if record.finished] for records in run.by_cell.values()]
    try:
        check_alike(record for own in finished for record in own)
    except InputError as error:
        return [], [f"methods are not compared: {error}"]
    sourced = [[(record, run.path or Path(run.name)) for record in own] for own in finished if own]
    return beside_each_other([entry_of(own) for own in sourced], load_noise()) if sourced else [], []
