"""Test rows of a cell, to be read: lost and gained ones first, or else those with fewest points."""

from pathlib import Path

import pandas as pd

from tunegrid.record import Record
from tunegrid.report.tables import Section
from tunegrid.runs.examples import point_columns, read

LONGEST = 240  # characters of a text


def rows_section(new: Record, path: Path | None, old: Record | None, old_path: Path | None, limit: int) -> Section:
    """At most `limit` rows of a record, beside those of the older one if it scored the same rows.

    The largest changes come first, lost points before gained ones; then rows of fewest points.
    """
    after, texts, before, sentences = read(new, path), read(new, path, "rows"), None, list[str]()
    if after is None or point_columns(after).empty:
        sentence = "The test rows' points are missing from the run's folder examples."
        return Section(
            heading="Test rows", sentences=[sentence if new.examples else "This run scored no test rows."], folded=True
        )
    if old and (not old.examples or not new.examples or old.examples.rows_hash != new.examples.rows_hash):
        sentences.append("The older run scored other test rows: its predictions are not paired.")
    elif old and (before := read(old, old_path)) is None:
        sentences.append("The older run's rows are missing from its folder examples.")
    if texts is None:
        sentences.append("The rows' text was not kept with this run: inputs and references are not shown.")
    metric = new.main_score if new.main_score in after else point_columns(after).columns[0]
    blank = dict.fromkeys(("change", "input", "reference", "before", "prediction"))
    frame = pd.DataFrame({"row": range(1, len(after) + 1), **blank, "points before": float("nan"), metric: after[metric]})
    frame["prediction"] = after["prediction"]
    if texts is not None:
        frame[["input", "reference"]] = texts[["input", "reference"]]
    if before is not None and metric in before:
        frame[["before", "points before"]] = before[["prediction", metric]]
        gain = (frame[metric] - frame["points before"]).round(2)
        frame["change"] = ["lost" if one < 0 else "gained" if one > 0 else "same" for one in gain]
        frame = frame.assign(size=-gain.abs(), gain=gain).sort_values(["size", "gain", metric]).drop(columns=["size", "gain"])
    else:
        frame = frame.sort_values(metric, kind="stable")
    losses, gains = (int((frame["change"] == change).sum()) for change in ("lost", "gained"))
    counts = f": {losses} lost, {gains} gained of {len(frame)}" if frame["change"].notna().any() else ""
    labels = {str(number): name for number, name in enumerate(new.labels)}
    head = frame.head(limit).reset_index(drop=True)
    head[[*blank]] = head[[*blank]].map(lambda text: text and labels.get(text, text[:LONGEST]))
    run = path.name if path else "RUN.json"
    sentences.append(f"{len(head)} of {len(frame)} rows, long texts cut; all: `tunegrid export {run} --rows -o rows.csv`.")
    forms, heading = {"row": ".0f", "points before": ".0f", metric: ".0f"}, f"Test rows{counts}"
    return Section(heading=heading, frame=head.dropna(axis=1, how="all"), formats=forms, sentences=sentences, folded=True)
