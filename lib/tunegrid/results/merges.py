"""Says which merge of an adapter over a packed base serves what the adapter does: records give lines and objections."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from tunegrid.record import Record
from tunegrid.record.instruments import BaseKind, MergedRecord, MergesRecord
from tunegrid.results.run_table import by_cell
from tunegrid.results.table import Column, lines, number, signed

BASES: tuple[BaseKind, ...] = ("packed", "unpacked", "original")
MEANING: dict[BaseKind, str] = {
    "packed": "merged into the packed base, whose layers PEFT packs again",
    "unpacked": "merged onto the packed base's numbers, unpacked",
    "original": "merged onto the checkpoint, which was never packed",
}
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="merged onto", width=11),
    Column(title="points", width=6, right=True),
    Column(title="change", width=6, right=True),
    Column(title="worst", width=6, right=True),
    Column(title="flips", width=6, right=True),
    Column(title="logits: mean", width=12, right=True),
    Column(title="largest", width=7, right=True),
    Column(title="of", width=6, right=True),
)


@dataclass(frozen=True, kw_only=True)
class MergeLine:
    """What one merge of a cell does beside the served adapter, over the cell's seeds; None where it was refused.

    Attributes:
        served, score: means of the main score.
        worst: the lowest change of a seed.
        flips: rows predicted otherwise, in percent of all.
        mean, largest: differences of logits; `logit` is the largest logit.
        refused: why PEFT does not merge, of the first seed.
    """

    cell: str
    base: BaseKind
    served: float | None
    score: float | None
    worst: float | None
    flips: float | None
    mean: float | None
    largest: float | None
    logit: float
    refused: str | None

    @property
    def change(self) -> float | None:
        """Points that the merge wins or, below 0, loses."""
        return None if self.score is None or self.served is None else round(self.score - self.served, 6) + 0.0


def objections(part: MergesRecord) -> Iterator[str]:
    """A sentence for each merge that is not what it is called, or that left layers without the adapter."""
    for base in BASES:
        one: MergedRecord = getattr(part, base)
        if one.refused is not None:
            continue
        if one.base != base:
            below = f"the {one.base} base" if one.base else "none of the three bases"
            yield f"what is to be {MEANING[base]}, lies on {below}"
        if one.unlike:
            yield (
                f"{MEANING[base]}, {len(one.unlike)} of {one.layers} layers do not compute what the adapter computes over it, "
                f"{one.unlike[0]} among them"
            )


def merge_lines(records: Iterable[Record]) -> list[MergeLine]:
    """Three lines for each cell that was merged, in the order of the records."""
    cells = by_cell(record for record in records if record.merges)
    return [_line(seeds, base) for seeds in cells for base in BASES]


def _line(seeds: Sequence[Record], base: BaseKind) -> MergeLine:
    parts = [record.merges for record in seeds if record.merges]
    pairs: list[tuple[MergesRecord, MergedRecord]] = [(part, getattr(part, base)) for part in parts]
    both = [(part.served, one.score) for part, one in pairs if part.served is not None and one.score is not None]
    flips = [100 * one.flips / part.rows for part, one in pairs if one.flips is not None]
    return MergeLine(
        cell=seeds[0].cell,
        base=base,
        served=_mean([served for served, _ in both] or [part.served for part in parts if part.served is not None]),
        score=_mean([score for _, score in both]),
        worst=min((score - served for served, score in both), default=None),
        flips=_mean(flips),
        mean=_mean([one.mean_difference for _, one in pairs if one.mean_difference is not None]),
        largest=max((one.largest_difference for _, one in pairs if one.largest_difference is not None), default=None),
        logit=max(part.largest_logit for part in parts),
        refused=next((one.refused for _, one in pairs if one.refused is not None), None),
    )


def _mean(figures: Sequence[float]) -> float | None:
    return fmean(figures) if figures else None


def merge_table(records: Iterable[Record]) -> list[str]:
    """The lines as a table, with the served adapter's above them, and why something was refused below it."""
    known = merge_lines(records)
    rows: list[tuple[str, ...]] = []
    for line in known:
        if line.base == BASES[0]:
            rows.append((line.cell, "(served)", number(line.served, 1), *[""] * 5, number(line.logit, 1)))
        change, worst, flips = signed(line.change, 1), signed(line.worst, 1), number(line.flips, 1)
        flips += " " if line.flips is None else "%"
        logits = (number(line.mean, 4), number(line.largest, 3), "")
        rows.append(("", line.base, number(line.score, 1), change, worst, flips, *logits))
    reasons: dict[str, list[str]] = {}
    for line in known:
        if line.refused:
            reasons.setdefault(line.refused, []).append(f"{line.cell} {line.base}")
    told = [f"not merged, {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return [*lines(COLUMNS, rows), *told] if rows else []
