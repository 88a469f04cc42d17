"""Chooses the test rows of a cell that are worth reading first, old beside new; lists those that changed (`--show-flips`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunegrid.record import Record
from tunegrid.results.examples import Examples, Texts, read, read_texts
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict, by_cell, worst
from tunegrid.results.quality import Rows
from tunegrid.results.table import count, markdown
from tunegrid.terminal import visible

LONGEST = 240  # characters of a text that is shown
BEFORE_CHANGE = 40  # characters of a prediction that stand before what changed
NOT_KEPT = "not kept"
FLIP = 0.005  # points: less than that is rounding of the file


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """One test row; what is not known is None."""

    number: int
    input: str | None
    reference: str | None
    old: str | None
    new: str
    old_points: float | None
    points: float

    @property
    def gain(self) -> float:
        """New minus old points."""
        return 0.0 if self.old_points is None else self.points - self.old_points

    @property
    def change(self) -> str:
        """lost, gained or same."""
        return "lost" if self.gain < -FLIP else "gained" if self.gain > FLIP else "same"


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """A sample of a cell's test rows.

    Attributes:
        rows: flips first, the largest ones before the others; then the rows with fewest points.
        metric: whose points are shown.
        paired: whether older predictions stand beside.
        missing: what the page would need to show more, as sentences.
    """

    rows: Sequence[ScoredRow] = ()
    metric: str = ""
    total: int = 0
    lost: int = 0
    gained: int = 0
    paired: bool = False
    file: str = ""
    missing: Sequence[str] = ()


def sampled(new: Record, path: Path | None, old: Record | None, old_path: Path | None, limit: int) -> RowSample:
    """At most `limit` rows of a record, beside those of the older one where it scored the same rows."""
    after = read(new, path)
    if after is None or not after.points:
        away = "this run scored no test rows"
        if new.examples:
            away = f"the test rows' points are not here: examples/{new.examples.file} is missing beside the run"
        return RowSample(missing=[away])
    before, missing = _older(new, old, old_path)
    texts = read_texts(new, path)
    if texts is None:
        missing.append("the rows' text was not kept with this run: inputs and references are not shown")
    metric = new.main_score if new.main_score in after.points else next(iter(after.points))
    rows = [_row(index, new, after, before, texts, metric) for index in range(len(after.ids))]
    lost, gained = ([row for row in rows if row.change == change] for change in ("lost", "gained"))
    return RowSample(
        rows=[_cut(row) for row in _first(rows, lost, gained, limit)],
        metric=metric,
        total=len(rows),
        lost=len(lost),
        gained=len(gained),
        paired=before is not None,
        file=new.examples.file if new.examples else "",
        missing=missing,
    )


def _older(new: Record, old: Record | None, path: Path | None) -> tuple[Examples | None, list[str]]:
    if old is None:
        return None, []
    if not old.examples or not new.examples or old.examples.rows_hash != new.examples.rows_hash:
        return None, ["the older run scored other test rows: its predictions are not paired"]
    before = read(old, path)
    return before, [] if before else [f"the older run's rows are not here: examples/{old.examples.file} is missing beside it"]


def _row(index: int, record: Record, after: Examples, before: Examples | None, texts: Texts | None, metric: str) -> ScoredRow:
    points = after.points[metric][index]
    known = texts.references[index] if texts else after.references[index] if after.references else None
    return ScoredRow(
        number=index + 1,
        input=texts.inputs[index] if texts else None,
        reference=_label(record, known) if known is not None else _deduced(record, after.predictions[index], points),
        old=_label(record, before.predictions[index]) if before else None,
        new=_label(record, after.predictions[index]),
        old_points=before.points[metric][index] if before and metric in before.points else None,
        points=points,
    )


def _label(record: Record, text: str) -> str:
    """The name of a class, where the text is its number."""
    return {str(number): name for number, name in enumerate(record.labels)}.get(text, text)


def _deduced(record: Record, prediction: str, points: float) -> str | None:
    """Of two classes, points and prediction tell the true one."""
    if len(record.labels) != 2 or prediction not in ("0", "1"):
        return None
    return record.labels[int(prediction) if points else 1 - int(prediction)]


def _first(rows: Sequence[ScoredRow], lost: list[ScoredRow], gained: list[ScoredRow], limit: int) -> list[ScoredRow]:
    """Lost and gained rows share the room: neither may crowd the other out."""
    half = limit // 2
    room_for_gained = max(half, limit - len(lost))
    gained = sorted(gained, key=lambda row: -row.gain)[:room_for_gained]
    lost = sorted(lost, key=lambda row: row.gain)[: limit - len(gained)]
    same = sorted((row for row in rows if row.change == "same"), key=lambda row: row.points)
    return [*lost, *gained, *same][:limit]


def _cut(row: ScoredRow) -> ScoredRow:
    input_, reference = (_short(text) for text in (row.input, row.reference))
    start = _start_of_change(row.old, row.new)
    old, new = (_short(text and (f"…{text[start:]}" if start else text)) for text in (row.old, row.new))
    return replace(row, input=input_, reference=reference, old=old, new=new or "")


def _start_of_change(old: str | None, new: str) -> int:
    """From where on two texts are shown: some characters before they part, where they part beyond what is shown."""
    if old is None or old == new:
        return 0
    parts = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new)))
    return parts - BEFORE_CHANGE if parts >= LONGEST else 0


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


# The rows that changed


@dataclass(frozen=True, kw_only=True)
class CellFlips:
    """The rows of one cell that changed, lost ones first.

    Attributes:
        verdict: on the cell's main score; None where it was not judged.
        seed: of the two records.
        sample: rows, and how many there are.
    """

    cell: str
    verdict: Verdict | None
    seed: int | None
    sample: RowSample

    @property
    def title(self) -> str:
        """The cell, its verdict, and how many rows changed."""
        sample, seed = self.sample, f", seed {self.seed}" if self.seed else ""
        counts = f"{count(sample.lost, 'row')} lost, {sample.gained} gained of {sample.total}{seed}"
        return f"{self.cell} {sample.metric} ({self.verdict or 'not judged'}): {counts}"


@dataclass(frozen=True, kw_only=True)
class FlipList:
    """What `--show-flips` lists: cells whose rows changed, the gravest verdict first; and why cells are not there."""

    limit: int
    cells: Sequence[CellFlips]
    missing: Sequence[str] = ()

    @property
    def heading(self) -> str:
        """One line above all."""
        each = f"test rows that changed, at most {self.limit} per cell, lost ones first"
        return f"{each}:" if self.cells else f"{each}: none"

    def lines(self) -> list[str]:
        """For a terminal: a row is five lines, and no text of a file has any effect."""
        rows = (line for flips in self.cells for line in (visible(flips.title), *_lines_of(flips.sample.rows)))
        return [self.heading, *rows, *map(visible, self.missing)]

    def markdown(self) -> list[str]:
        """As one table that opens on a click."""
        head = "| cell | row | points | input | reference | before | after |\n|---|---|---|---|---|---|---|"
        rows = [
            f"| {' | '.join(map(markdown, (flips.cell, str(row.number), _points(row), *_texts_of(row).values())))} |"
            for flips in self.cells
            for row in flips.sample.rows
        ]
        titles = "\n".join(f"* {markdown(text)}" for text in (*(flips.title for flips in self.cells), *self.missing))
        table = [head + "\n" + "\n".join(rows)] if rows else []
        return [f"<details><summary>{self.heading}</summary>", titles, *table, "</details>"]


def _lines_of(rows: Sequence[ScoredRow]) -> Iterator[str]:
    for row in rows:
        yield f"  row {row.number}: {_points(row)} points"
        yield from (f"    {name:<9} {visible(text)}" for name, text in _texts_of(row).items())


def _points(row: ScoredRow) -> str:
    return f"{row.old_points:.4g} -> {row.points:.4g}"


def _texts_of(row: ScoredRow) -> Mapping[str, str]:
    texts = {"input": row.input, "reference": row.reference, "before": row.old, "after": row.new}
    return {name: NOT_KEPT if text is None else text for name, text in texts.items()}


def flips(cells: Mapping[str, Rows], judged: Sequence[Judgement], limit: int) -> FlipList:
    """At most `limit` rows of each cell whose points changed: of the first pair of records, which are of one seed if any are.

    Args:
        cells: that both runs have.
        judged: by the gate.
        limit: of rows; lost and gained ones share the room.
    """
    verdicts = {cell: worst(j for j in own if j.quantity == j.main_score) for cell, own in by_cell(judged).items()}
    of_cells = [
        _flips_of(cell, rows, verdicts.get(cell), limit)
        for cell, rows in cells.items()
        if any(record.scores for pair in rows.records for record in pair)
    ]
    changed = [one for one in of_cells if one.sample.rows]
    changed.sort(key=lambda one: GRAVEST_FIRST.index(one.verdict) if one.verdict else len(GRAVEST_FIRST))
    return FlipList(limit=limit, cells=changed, missing=_missing(of_cells))


def _flips_of(cell: str, rows: Rows, verdict: Verdict | None, limit: int) -> CellFlips:
    before, after = rows.records[0]
    sample = sampled(after, rows.new_path, before, rows.old_path, limit)
    changed = [row for row in sample.rows if row.change != "same"]
    return CellFlips(cell=cell, verdict=verdict, seed=after.seeds.seed, sample=replace(sample, rows=changed))


def _missing(of_cells: Sequence[CellFlips]) -> list[str]:
    """A sentence for each thing that is not there, with how many cells lack it."""
    lacking = [(one.cell, sentence) for one in of_cells for sentence in one.sample.missing]
    kinds: dict[str, list[str]] = {}
    for cell, sentence in lacking:
        kinds.setdefault(sentence.partition(":")[0], []).append(f"{cell}: {sentence}")
    return [f"{same[0]}{f' (and {len(same) - 1} cells more)' if len(same) > 1 else ''}" for same in kinds.values()]
