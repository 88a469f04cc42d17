"""Chooses the test rows of a cell that are worth reading first, old beside new; lists those that changed (`--show-flips`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunegrid.record import Record
from tunegrid.results.examples import read, read_texts
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, by_cell, worst
from tunegrid.results.quality import Rows
from tunegrid.results.report import Section, count

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 240  # characters of a text that is shown
BEFORE_CHANGE = 40  # characters of a prediction that stand before what changed
FLIP = 0.005  # points: less than that is rounding of the file


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """A sample of a cell's test rows.

    Attributes:
        frame: lost and gained ones first, the largest before the others; then those with fewest points. Columns are number,
            change (lost, gained, same), input, reference, old, new, old_points, points; NaN and None where nothing is known.
        metric: whose points are shown.
        paired: whether older predictions stand beside.
        missing: what would be needed to show more, as sentences.
    """

    frame: "pd.DataFrame | None" = None
    metric: str = ""
    total: int = 0
    lost: int = 0
    gained: int = 0
    paired: bool = False
    missing: Sequence[str] = ()

    @property
    def rows(self) -> list[Any]:
        """Each with the columns as attributes."""
        return [] if self.frame is None else list(self.frame.itertuples(index=False))


def sampled(new: Record, path: Path | None, old: Record | None, old_path: Path | None, limit: int) -> RowSample:
    """At most `limit` rows of a record, beside those of the older one where it scored the same rows."""
    import pandas as pd

    after = read(new, path)
    if after is None or not after.points:
        name = new.examples and f"examples/{new.examples.file}"
        away = (
            f"the test rows' points are not here: {name} is missing beside the run" if name else "this run scored no test rows"
        )
        return RowSample(missing=[away])
    before, texts, missing = None, read_texts(new, path), []
    if old and (not old.examples or not new.examples or old.examples.rows_hash != new.examples.rows_hash):
        missing.append("the older run scored other test rows: its predictions are not paired")
    elif old and old.examples and (before := read(old, old_path)) is None:
        missing.append(f"the older run's rows are not here: examples/{old.examples.file} is missing beside it")
    if texts is None:
        missing.append("the rows' text was not kept with this run: inputs and references are not shown")
    metric = new.main_score if new.main_score in after.points else next(iter(after.points))
    frame = pd.DataFrame(
        {
            "number": range(1, len(after.ids) + 1),
            "input": texts.inputs if texts else None,
            "reference": texts.references if texts else None,
            "old": before.predictions if before else None,
            "new": after.predictions,
            "old_points": before.points.get(metric) if before else None,
            "points": after.points[metric],
        }
    )
    labels = {str(number): name for number, name in enumerate(new.labels)}
    frame[["old", "new"]] = frame[["old", "new"]].map(lambda text: labels.get(text, text))
    frame["old_points"] = frame["old_points"].astype(float)
    gain = (frame["points"] - frame["old_points"]).fillna(0.0)
    frame["change"] = ["lost" if one < -FLIP else "gained" if one > FLIP else "same" for one in gain]
    changes = frame["change"].value_counts()
    first = _first(frame.assign(gain=gain), limit).drop(columns="gain")
    return RowSample(
        frame=first.assign(**_cut(first)),
        metric=metric,
        total=len(frame),
        lost=int(changes.get("lost", 0)),
        gained=int(changes.get("gained", 0)),
        paired=before is not None,
        missing=missing,
    )


def _first(frame: "pd.DataFrame", limit: int) -> "pd.DataFrame":
    """Lost and gained rows share the room: neither may crowd the other out."""
    import pandas as pd

    by_gain = frame.sort_values("gain", kind="stable")
    lost = by_gain[by_gain["change"] == "lost"]
    gained = frame.sort_values("gain", ascending=False, kind="stable").query("change == 'gained'")
    gained = gained.head(max(limit // 2, limit - len(lost)))
    same = frame[frame["change"] == "same"].sort_values("points", kind="stable")
    return pd.concat([lost.head(limit - len(gained)), gained, same]).head(limit)


def _cut(frame: "pd.DataFrame") -> dict[str, list[str | None]]:
    """Long texts; predictions begin shortly before they part, if that is beyond what is shown."""
    cut = {name: [_short(text) for text in frame[name]] for name in ("input", "reference")}
    pairs = [(old, new) if old and old != new else ("", "") for old, new in zip(frame["old"], frame["new"], strict=True)]
    same = [len(commonprefix(pair)) for pair in pairs]  # noqa: RUF071 # of texts, which are no paths
    for name in ("old", "new"):
        texts = zip(frame[name], same, strict=True)
        cut[name] = [_short(f"…{text[at - BEFORE_CHANGE :]}" if text and at >= LONGEST else text) for text, at in texts]
    return cut


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def flips(cells: Mapping[str, Rows], judged: Sequence[Judgement], limit: int) -> list[Section]:
    """At most `limit` rows of each cell whose points changed, lost and gained ones: cells with the gravest verdict first.

    They are of the first pair of records of a cell that both runs have, which are of one seed if any are. Below the heading
    stands why cells are not there, with how many lack the same.
    """
    verdicts = {cell: worst(j for j in own if j.quantity == j.main_score) for cell, own in by_cell(judged).items()}
    tables, lacking = list[tuple[int, Section]](), dict[str, list[str]]()
    for cell, rows in cells.items():
        if not any(record.scores for pair in rows.records for record in pair):
            continue
        before, after = rows.records[0]
        sample, verdict = sampled(after, rows.new_path, before, rows.old_path, limit), verdicts.get(cell)
        for sentence in sample.missing:
            lacking.setdefault(sentence.partition(":")[0], []).append(f"{cell}: {sentence}")
        if changed := [row for row in sample.rows if row.change != "same"]:
            seed = f", seed {after.seeds.seed}" if after.seeds.seed else ""
            counts = f"{count(sample.lost, 'row')} lost, {sample.gained} gained of {sample.total}{seed}"
            title = f"{cell} {sample.metric} ({verdict or 'not judged'}): {counts}"
            rank = GRAVEST_FIRST.index(verdict) if verdict else len(GRAVEST_FIRST)
            tables.append((rank, Section(heading=title, frame=_listed(changed), folded=True)))
    heading = f"test rows that changed, at most {limit} per cell, lost ones first{':' if tables else ': none'}"
    sentences = [f"{same[0]}{f' (and {len(same) - 1} cells more)' if len(same) > 1 else ''}" for same in lacking.values()]
    tables.sort(key=lambda table: table[0])
    return [Section(heading=heading, sentences=sentences), *(section for _, section in tables)]


def _listed(rows: Sequence[Any]) -> "pd.DataFrame":
    """Four lines for each row: its texts are too long to stand side by side."""
    import pandas as pd

    lines = [
        (row.number, f"{row.old_points:.4g} -> {row.points:.4g}", name, "not kept" if text is None else text)
        for row in rows
        for name, text in (("input", row.input), ("reference", row.reference), ("before", row.old), ("after", row.new))
    ]
    return pd.DataFrame(lines, columns=["row", "points", "", "text"])
