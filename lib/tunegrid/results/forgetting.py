"""Says what a cell's backbone forgot: losses of texts give the part of a record, records give lines and objections."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING

from tunegrid.grid.methods import SFT
from tunegrid.record import Record
from tunegrid.record.instruments import ForgettingRecord
from tunegrid.record.parts import Estimate
from tunegrid.results.compare import Error, p_of
from tunegrid.results.noise import MOST_DF
from tunegrid.results.run_table import by_cell
from tunegrid.results.statistics import ALPHA, holm, ratio
from tunegrid.results.table import Column, lines, number, signed

if TYPE_CHECKING:
    from tunegrid.run.forgetting import TextLosses

NORMAL = 1.96  # standard errors from the middle of a 95 % interval to its ends
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="points", width=6, right=True),
    Column(title="before", width=6, right=True),
    Column(title="after", width=6, right=True),
    Column(title="change", width=6, right=True),
    Column(title="95 % interval", width=14, right=True),
    Column(title="of SFT's", width=8, right=True),
)


def forgetting_record(before: "TextLosses", after: "TextLosses") -> ForgettingRecord:
    """The part of a record: losses a token over all texts, with intervals over texts."""
    tokens, refused = before.tokens, before.refused or after.refused
    changes = None if refused else [new - old for old, new in zip(before.sums, after.sums, strict=True)]
    return ForgettingRecord(
        objective=before.objective.value if before.objective else None,
        texts=dict(before.texts),
        tokens=sum(tokens),
        frozen=after.frozen,
        before=_a_token(before.sums, tokens) if changes is not None else None,
        after=_a_token(after.sums, tokens) if changes is not None else None,
        change=_a_token(changes, tokens) if changes is not None else None,
        refused=refused,
    )


def _a_token(sums: Sequence[float], tokens: Sequence[int]) -> Estimate | None:
    """Nats a token; None where a loss is no finite number."""
    value, low, high = ratio(sums, tokens)
    return Estimate(value=value, low=low, high=high) if low - high <= 0 else None


def objections(part: ForgettingRecord) -> Iterator[str]:
    """A sentence where a frozen backbone forgot, where a trained one was not asked, and where its loss is no number."""
    if part.refused is not None:
        return
    if part.change is None:
        yield "the backbone's own loss is no finite number after training"
    elif part.frozen and part.change.value != 0:
        yield f"nothing of the backbone trains, and its own loss went {part.change.value:+.3g} nats"
    elif not part.frozen and part.change.value == part.change.low == part.change.high == 0:
        yield "the backbone trains, and its own loss is the same to the last digit on every text: another model was asked"


@dataclass(frozen=True, kw_only=True)
class ForgettingLine:
    """What a cell forgot, over its seeds: means, the interval over texts as well; None where it was not asked.

    Attributes:
        score: the main score.
        share: the change as a share of that of all weights trained (SFT) on the same backbone and task; None where SFT
            is not seen to forget: its interval holds 0, or it got better.
    """

    cell: str
    backbone: str
    task: str
    method: str
    score: float | None
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    share: float | None
    refused: str | None


def forgetting_lines(records: Iterable[Record]) -> list[ForgettingLine]:
    """A line for each cell that was asked, in the order of the records."""
    cells = by_cell(record for record in records if record.forgetting)
    lost = [seeds for seeds in cells if (_mean_of(seeds, "change", "low") or 0) > 0]
    changes = {(seeds[0].profile, seeds[0].cell): _mean_of(seeds, "change", "value") for seeds in lost}
    return [_line(seeds, changes.get((seeds[0].profile, f"{seeds[0].backbone}_{seeds[0].task}_{SFT.id}"))) for seeds in cells]


def _line(seeds: Sequence[Record], of_sft: float | None) -> ForgettingLine:
    first = seeds[0]
    change = _mean_of(seeds, "change", "value")
    return ForgettingLine(
        cell=first.cell,
        backbone=first.backbone,
        task=first.task,
        method=first.method,
        score=_mean([record.scores.get(record.main_score) for record in seeds]),
        before=_mean_of(seeds, "before", "value"),
        after=_mean_of(seeds, "after", "value"),
        change=change,
        low=_mean_of(seeds, "change", "low"),
        high=_mean_of(seeds, "change", "high"),
        share=change / of_sft if change is not None and of_sft and first.method != SFT.id else None,
        refused=next((part.refused for record in seeds if (part := record.forgetting) and part.refused), None),
    )


def _mean_of(seeds: Sequence[Record], name: str, end: str) -> float | None:
    estimates: list[Estimate | None] = [getattr(record.forgetting, name) for record in seeds]
    return _mean([getattr(one, end) if one else None for one in estimates])


def _mean(figures: Sequence[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return fmean(known) if known else None


def forgot_more(records: Iterable[Record]) -> list[str]:
    """The cells that forgot more than SFT of the same backbone and task, as far as seeds and texts tell (Holm, 5 %)."""
    cells = {(seeds[0].profile, seeds[0].cell): seeds for seeds in by_cell(record for record in records if record.forgetting)}
    of_sft = {key: (key[0], f"{seeds[0].backbone}_{seeds[0].task}_{SFT.id}") for key, seeds in cells.items()}
    asked = [key for key, other in of_sft.items() if other != key and other in cells]
    gaps = {key: gap for key in asked if (gap := _gap(cells[key], cells[of_sft[key]]))}
    adjusted = holm({key: p for key, (_, p) in gaps.items()})
    return [key[1] for key, (difference, _) in gaps.items() if difference > 0 and adjusted[key] < ALPHA]


def _gap(one: Sequence[Record], other: Sequence[Record]) -> tuple[float, float] | None:
    """One cell's mean change minus another's, and its p-value; None if a cell has one seed, whose noise nobody knows.

    The variances of both means between seeds add up, with those of the texts, as if the two were not asked the same ones.
    """
    changes = [[r.forgetting.change for r in seeds if r.forgetting and r.forgetting.change] for seeds in (one, other)]
    if min(map(len, changes)) < 2:
        return None
    values = [[change.value for change in own] for own in changes]
    seeds: list[Error] = [(variance(own) / len(own), len(own) - 1.0) for own in values]
    texts: list[Error] = [((fmean((c.high - c.low) / 2 for c in own) / NORMAL) ** 2, MOST_DF) for own in changes]
    difference = fmean(values[0]) - fmean(values[1])
    return difference, p_of(difference, [*seeds, *texts])


def forgetting_table(records: Sequence[Record]) -> list[str]:
    """The lines as a table in nats a token, and below it what was not asked and why, and where an adapter forgot more."""
    known = forgetting_lines(records)
    rows = [
        (
            line.cell,
            number(line.score, 1),
            number(line.before, 3),
            number(line.after, 3),
            signed(line.change, 3),
            "-" if line.low is None or line.high is None else f"{line.low:+.3f} {line.high:+.3f}",
            "" if line.share is None else f"{line.share:.0%}",
        )
        for line in known
    ]
    told = [f"not asked, {line.cell}: {line.refused}" for line in known if line.refused]
    more = forgot_more(records)
    told += [f"more than SFT of the same backbone and task forgot: {', '.join(more)}"] if more else []
    return [*lines(COLUMNS, rows), *told] if rows else []
