"""Builds the table of a cell's test rows, with the largest changes or fewest points first."""

from pathlib import Path

import pandas as pd

from tunegrid.record import Record
from tunegrid.report.tables import Section
from tunegrid.runs.examples import point_columns, read

LONGEST = 240  # characters shown of a text


def rows_section(
    new: Record,
    path: Path | None,
    old: Record | None,
    old_path: Path | None,
    limit: int,
) -> Section:
    """At most `limit` test rows, with the older predictions if the older run scored the same rows.

    The largest changes come first. Equally large changes are sorted with losses before gains, then
    by points, fewest first. Without older points, rows with the fewest points come first.
    """
    after = read(new, path)
    texts = read(new, path, "rows")
    if after is None or point_columns(after).empty:
        sentence = "This run scored no test rows."
        if new.examples:
            sentence = "The test rows' points are missing from the run's folder examples."
        return Section(heading="Test rows", sentences=[sentence], folded=True)
    before = None
    sentences = []
    if old:
        old_hash = old.examples and old.examples.rows_hash
        if new.examples and new.examples.rows_hash == old_hash:
            before = read(old, old_path)
            if before is None:
                sentences.append("The older run's rows are missing from its folder examples.")
        else:
            other_rows = "The older run scored other test rows"
            sentences.append(f"{other_rows}: its predictions are not paired.")
    if texts is None:
        lost_text = "The rows' text was not kept with this run"
        sentences.append(f"{lost_text}: inputs and references are not shown.")
    metric = new.main_score
    if metric not in after:
        metric = point_columns(after).columns[0]
    words = ["change", "input", "reference", "before", "prediction"]
    frame = pd.DataFrame({"row": range(1, len(after) + 1)} | dict.fromkeys(words))
    frame["prediction"] = after["prediction"]
    frame["points before"] = float("nan")
    frame[metric] = after[metric]
    if texts is not None:
        frame[["input", "reference"]] = texts[["input", "reference"]]
    counts = ""
    if before is not None and metric in before:
        frame[["before", "points before"]] = before[["prediction", metric]]
        gain = (frame[metric] - frame["points before"]).round(2)
        frame["change"] = "same"
        frame.loc[gain < 0, "change"] = "lost"
        frame.loc[gain > 0, "change"] = "gained"
        counts = f": {sum(gain < 0)} lost, {sum(gain > 0)} gained of {len(frame)}"
        sizes = frame.assign(size=-gain.abs(), gain=gain)
        frame = frame.loc[sizes.sort_values(["size", "gain", metric]).index]
    else:
        frame = frame.sort_values(metric, kind="stable")
    labels = {str(number): name for number, name in enumerate(new.labels)}
    head = frame.head(limit).reset_index(drop=True)
    head[words] = head[words].map(lambda text: text and labels.get(text, text[:LONGEST]))
    shown = f"{len(head)} of {len(frame)} rows, long texts cut"
    command = f"tunegrid export {path.name if path else 'RUN.json'} --rows -o rows.csv"
    sentences.append(f"{shown}; all: `{command}`.")
    return Section(
        heading=f"Test rows{counts}",
        frame=head.dropna(axis=1, how="all"),
        formats={"row": ".0f", "points before": ".0f", metric: ".0f"},
        sentences=sentences,
        folded=True,
    )
