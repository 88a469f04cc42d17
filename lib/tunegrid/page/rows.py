"""Chooses the test rows of a cell that are worth reading first, old beside new."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunegrid.record import Record
from tunegrid.results.examples import Examples, Texts, read, read_texts

LONGEST = 240  # characters of a text on the page
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
        return RowSample(missing=[_no_examples(new)])
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


def _no_examples(record: Record) -> str:
    if record.examples is None:
        return "this run scored no test rows"
    return f"the test rows' points are not here: examples/{record.examples.file} is missing beside the run"


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
    input_, reference, old = (_short(text) for text in (row.input, row.reference, row.old))
    return replace(row, input=input_, reference=reference, old=old, new=_short(row.new) or "")


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
