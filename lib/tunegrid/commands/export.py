"""Writes runs as one table: `tunegrid export RUN.json ... -o runs.parquet` (or .csv), for pandas,
DuckDB or a spreadsheet.

Each row holds a figure of a cell and seed, named as in the record, with the device, versions, date
and commit; for a loss, also the number of its update. With --rows, each row holds a test row
instead: its text, the prediction and its points.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from tunegrid.errors import InputError
from tunegrid.machine import replace_file
from tunegrid.record import Record, schema
from tunegrid.runs.examples import read
from tunegrid.runs.files import SavedRun, read_saved
from tunegrid.runs.frame import measured
from tunegrid.terminal import say

if TYPE_CHECKING:
    import pandas as pd

# Spreadsheets treat a CSV cell as a formula if it begins with one of these, full-width or not
FORMULA = tuple("=+-@\t\r\n")


def record_frame(runs: Sequence[SavedRun]) -> "pd.DataFrame":
    """A table with a row for each figure and each loss of each cell and seed.

    Raises InputError if nothing was measured, and OverflowError if a number is too large.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run in runs:
        for record in run.records:
            facts = record_key(run.path, record)
            facts["date"] = run.when or None
            facts["commit"] = run.commit or None
            facts["device"] = record.device and record.device.name
            for name, version in record.versions.items():
                facts[f"versions.{name}"] = version
            for name, value in measured(record):
                rows.append(facts | {"metric": name, "update": None, "value": value})
            losses = record.training.losses if record.training else ()
            for update, loss in enumerate(losses, 1):
                if loss is not None:
                    line = {"metric": "training.losses", "update": update, "value": loss}
                    rows.append(facts | line)
    if not rows:
        raise InputError("no cell of these runs measured anything: there is nothing to export")
    return pd.DataFrame(rows).astype({"update": "Int64"})


def row_frame(runs: Sequence[SavedRun]) -> tuple["pd.DataFrame", list[str]]:
    """A table of all test rows, and a sentence for each record whose test rows are missing.

    Raises InputError if no record has test rows, or if a file of test rows is damaged.
    """
    import pandas as pd

    frames = []
    sentences = []
    for run in runs:
        for record in run.records:
            points = read(record, run.path)
            if points is None:
                case = f"{record.cell}, seed {record.seeds.seed}"
                sentences.append(f"{run.path}: {case}, has no test rows beside it in examples/")
                continue
            columns = record_key(run.path, record)
            columns["row"] = range(1, len(points) + 1)
            columns |= {"input": None, "reference": None}
            columns |= dict(points)
            texts = read(record, run.path, "rows")
            if texts is not None:
                columns |= dict(texts)  # references: label names, all accepted answers
            frames.append(pd.DataFrame(columns))
    if not frames:
        advice = "copy the folder examples along with a run's JSON"
        raise InputError(f"none of these runs has its test rows beside it: {advice}")
    return pd.concat(frames, ignore_index=True), sentences


def record_key(path: Path, record: Record) -> dict[str, Any]:
    """The columns that identify the record that a row comes from."""
    key: dict[str, Any] = {"run": path.name}
    for name in ("profile", "cell", "backbone", "task", "method", "status", "main_score"):
        key[name] = getattr(record, name)
    for name in ("seed", "perturbation", "confirms"):
        key[name] = getattr(record.seeds, name)
    return key


def write_table(frame: "pd.DataFrame", path: Path) -> None:
    """Write a table in the format that the file name's suffix indicates.

    Raises InputError if the suffix is unknown or the file cannot be written.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path}: give a name that ends in .parquet or .csv")
    try:
        with replace_file(path) as file:
            if path.suffix == ".parquet":
                frame.to_parquet(file, index=False)
            else:
                frame.rename(columns=escape_formula).map(escape_formula).to_csv(file, index=False)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def escape_formula(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would treat as a formula."""
    if isinstance(value, str) and normalize("NFKC", value[:1]).startswith(FORMULA):
        return f"'{value}"
    return value


def main(arguments: list[str] | None = None) -> int:
    """Write the table, or print the schema; return the exit code.

    Raises InputError if a run cannot be read or exported, or the table cannot be written.
    """
    parser = argparse.ArgumentParser(prog="tunegrid export", description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="*", metavar="RUN.json")
    add("-o", "--output", type=Path, metavar="FILE.parquet|.csv")
    add("--rows", action="store_true", help="one row per test row")
    add(
        "--schema",
        action="store_true",
        help="print the JSON schema of a record, and nothing else",
    )
    options = parser.parse_args(arguments)
    if options.schema:
        say(json.dumps(schema(), indent=2))
        return 0
    if not options.runs or not options.output:
        parser.error("name the runs, and the file to write with -o")
    runs = [read_saved(path) for path in options.runs]
    for run in runs:
        if run.doubt:
            say(run.warning)
    sentences: list[str] = []
    try:
        if options.rows:
            frame, sentences = row_frame(runs)
        else:
            frame = record_frame(runs)
    except OverflowError as error:
        fault = f"a record holds a number too large for a table ({error})"
        raise InputError(f"{fault}; leave its run out") from None
    write_table(frame, options.output)
    for sentence in sentences:
        say(sentence, error=True)
    say(f"wrote {options.output}: {len(frame)} rows of {len(frame.columns)} columns")
    return 0
