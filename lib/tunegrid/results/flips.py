"""Chooses the test rows of a cell that are worth reading first, old beside new; lists those that changed (`--show-flips`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING

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
TEXTS = ["input", "reference", "before", "after"]


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """A sample of a cell's test rows.

    Attributes:
        frame: columns are row, change (lost, gained or same), input, reference, before, after, points before, points; None and
            NaN where nothing is known. None where there are no rows.
        metric: whose points these are.
        missing: what would be needed to show more, as sentences.
    """

    frame: "pd.DataFrame | None" = None
    metric: str = ""
    total: int = 0
    lost: int = 0
    gained: int = 0
    missing: Sequence[str] = ()


def sampled(new: Record, path: Path | None, old: Record | None, old_path: Path | None, limit: int) -> RowSample:
    """At most `limit` rows of a record, beside those of the older one if it scored the same rows: see `_first`."""
    import pandas as pd

    after = read(new, path)
    if new.examples is None or after is None or not after.points:
        file = new.examples and f"examples/{new.examples.file}"
        lacking = f"the test rows' points are not here: {file} is missing beside the run" if file else ""
        return RowSample(missing=[lacking or "this run scored no test rows"])
    before, texts, missing = None, read_texts(new, path), []
    if old and (not old.examples or old.examples.rows_hash != new.examples.rows_hash):
        missing.append("the older run scored other test rows: its predictions are not paired")
    elif old and old.examples and (before := read(old, old_path)) is None:
        missing.append(f"the older run's rows are not here: examples/{old.examples.file} is missing beside it")
    if texts is None:
        missing.append("the rows' text was not kept with this run: inputs and references are not shown")
    metric = new.main_score if new.main_score in after.points else next(iter(after.points))
    columns = {
        "row": range(1, len(after.ids) + 1),
        "change": None,
        "input": texts.inputs if texts else None,
        "reference": texts.references if texts else None,
        "before": before.predictions if before else None,
        "after": after.predictions,
        "points before": before.points.get(metric) if before else None,
        "points": after.points[metric],
    }
    frame = pd.DataFrame(columns).astype({"points before": float})
    gain = frame["points"] - frame["points before"]
    if before:
        frame["change"] = ["lost" if one < -FLIP else "gained" if one > FLIP else "same" for one in gain]
    labels = {str(number): name for number, name in enumerate(new.labels)}
    frame[["before", "after"]] = frame[["before", "after"]].map(lambda text: labels.get(text, text))
    rows = _shortened(_first(frame.assign(gain=gain), limit).drop(columns="gain"))
    lost, gained = (int((frame["change"] == change).sum()) for change in ("lost", "gained"))
    return RowSample(frame=rows, metric=metric, total=len(frame), lost=lost, gained=gained, missing=missing)


def _first(frame: "pd.DataFrame", limit: int) -> "pd.DataFrame":
    """The largest losses, the largest gains, then rows of fewest points; neither lost nor gained ones crowd the others out."""
    import pandas as pd

    lost = frame[frame["change"] == "lost"].sort_values("gain", kind="stable")
    gained = frame[frame["change"] == "gained"].sort_values("gain", kind="stable", ascending=False)
    gained = gained.head(max(limit // 2, limit - len(lost)))
    others = frame[~frame["change"].isin(["lost", "gained"])].sort_values("points", kind="stable")
    return pd.concat([lost.head(limit - len(gained)), gained, others]).head(limit)


def _shortened(frame: "pd.DataFrame") -> "pd.DataFrame":
    """With the first characters of long texts; predictions that part beyond these begin shortly before they do."""
    pairs = [(old, new) if old and old != new else ("", "") for old, new in zip(frame["before"], frame["after"], strict=True)]
    shared = [len(commonprefix(pair)) for pair in pairs]  # noqa: RUF071 # of texts, which are no paths
    for name in TEXTS:
        texts = list(frame[name])
        if name in ("before", "after"):
            texts = [
                f"…{text[at - BEFORE_CHANGE :]}" if at >= LONGEST else text for text, at in zip(texts, shared, strict=True)
            ]
        frame[name] = [f"{text[: LONGEST - 1]}…" if text and len(text) > LONGEST else text for text in texts]
    return frame


def flips(cells: Mapping[str, Rows], judged: Sequence[Judgement], limit: int) -> list[Section]:
    """At most `limit` rows of each cell whose points changed, cells with the gravest verdict on their main score first.

    They are of the first pair of records of a cell that both runs have, which are of one seed if any are. A row is four lines,
    as its texts are too long to stand side by side. The first section says why cells are not there, and how many lack the same.
    """
    verdicts = {cell: worst(j for j in own if j.quantity == j.main_score) for cell, own in by_cell(judged).items()}
    tables, lacking = list[tuple[int, Section]](), dict[str, list[str]]()
    for cell, pairs in cells.items():
        if not any(record.scores for pair in pairs.records for record in pair):
            continue
        before, after = pairs.records[0]
        sample, verdict = sampled(after, pairs.new_path, before, pairs.old_path, limit), verdicts.get(cell)
        for sentence in sample.missing:
            lacking.setdefault(sentence.partition(":")[0], []).append(f"{cell}: {sentence}")
        if sample.frame is None or not sample.lost + sample.gained:
            continue
        rows = sample.frame[sample.frame["change"].isin(["lost", "gained"])].fillna({name: "not kept" for name in TEXTS})
        points = zip(rows["points before"], rows["points"], strict=True)
        rows = rows.assign(points=[f"{old:.4g} -> {new:.4g}" for old, new in points]).reset_index(drop=True)
        lines = rows.melt(["row", "points"], TEXTS, "", "text", ignore_index=False).sort_index(kind="stable")
        seed = f", seed {after.seeds.seed}" if after.seeds.seed else ""
        counts = f"{count(sample.lost, 'row')} lost, {sample.gained} gained of {sample.total}{seed}"
        title = f"{cell} {sample.metric} ({verdict or 'not judged'}): {counts}"
        rank = GRAVEST_FIRST.index(verdict) if verdict else len(GRAVEST_FIRST)
        tables.append((rank, Section(heading=title, frame=lines, folded=True)))
    heading = f"test rows that changed, at most {limit} per cell, lost ones first{':' if tables else ': none'}"
    sentences = [f"{same[0]}{f' (and {len(same) - 1} cells more)' if same[1:] else ''}" for same in lacking.values()]
    ranked = sorted(tables, key=lambda table: table[0])
    return [Section(heading=heading, sentences=sentences), *(section for _, section in ranked)]
