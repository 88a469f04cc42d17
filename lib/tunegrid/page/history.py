"""Several runs in the order of time: each cell's score in each of them, with the gate's verdict at each step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise

from tunegrid.page import charts
from tunegrid.page.runs import PageRun, judged
from tunegrid.results.judgements import Judgement, Verdict, by_cell, worst

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
    verdicts = [by_cell(judgements) for judgements, _ in answers]
    cells = dict.fromkeys(cell for one in reversed(runs) for cell in one.by_cell)
    steps = {
        cell: [(one.score(cell), _verdict(verdicts[i - 1].get(cell, [])) if i else None) for i, one in enumerate(runs)]
        for cell in cells
    }
    remarks = dict.fromkeys(remark for _, found in answers for remark in found)
    return RunHistory(runs=runs, steps=steps, remarks=list(remarks))


def _verdict(judgements: Sequence[Judgement]) -> Verdict | None:
    return worst([j for j in judgements if j.decides and j.kind == "quality"])
