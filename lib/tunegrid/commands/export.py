"""Runs as one table: `tunegrid export RUN.json ... -o runs.parquet` (or .csv), for pandas, DuckDB or a spreadsheet.

A row is a figure of a cell and seed, named as in the record, with its device, versions, date and commit; a loss has its update.
With --rows a row is a test row: its text, the prediction and its points.
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

FORMULA = tuple("=+-@\t\r\n")  # with which a spreadsheet takes a cell of a CSV file for a formula, in full width, too


def figure_rows(runs: Sequence[SavedRun]) -> "pd.DataFrame":
    """One row per figure of each cell and seed; raises OverflowError if a table cannot hold it."""
    import pandas as pd

    rows = list[dict[str, Any]]()
    for run, record in [(one, record) for one in runs for record in one.records]:
        facts = record_key(run.path, record)
        facts["date"] = run.when or None
        facts["commit"] = run.commit or None
        facts["device"] = record.device and record.device.name
        facts |= {f"versions.{name}": version for name, version in record.versions.items()}
        for name, value in measured(record):
            rows.append(facts | {"metric": name, "update": None, "value": value})
        losses = enumerate(record.training.losses if record.training else (), 1)
        line = facts | {"metric": "training.losses"}
        rows += [line | {"update": update, "value": loss} for update, loss in losses if loss is not None]
    if not rows:
        raise InputError("no cell of these runs measured anything: there is nothing to export")
    return pd.DataFrame(rows).astype({"update": "Int64"})


def scored_rows(runs: Sequence[SavedRun]) -> tuple["pd.DataFrame", list[str]]:
    """One row per test row, with one column per metric; and a sentence for every record whose rows are not there."""
    import pandas as pd

    frames, sentences = [], []
    for path, record in [(run.path, record) for run in runs for record in run.records]:
        rows, texts = read(record, path), read(record, path, "rows")
        if rows is None:
            sentences.append(f"{path}: {record.cell}, seed {record.seeds.seed}, has no test rows beside it in examples/")
            continue
        columns = {"row": range(1, len(rows) + 1), "input": None, "reference": None} | dict(rows)
        answers = {} if texts is None else dict(texts)  # more than points say: a label's name, and the answers that count
        frames.append(pd.DataFrame(record_key(path, record) | columns | answers))
    if not frames:
        raise InputError("none of these runs has its test rows beside it: copy the folder examples along with a run's JSON")
    return pd.concat(frames, ignore_index=True), sentences


def record_key(path: Path, record: Record) -> dict[str, Any]:
    """What tells a record from the others."""
    names = ("profile", "cell", "backbone", "task", "method", "status", "main_score")
    seeds = {name: getattr(record.seeds, name) for name in ("seed", "perturbation", "confirms")}
    return {"run": path.name, **{name: getattr(record, name) for name in names}, **seeds}


def write_table(frame: "pd.DataFrame", path: Path) -> None:
    """Write it in the format that the file's name asks for; raises InputError if it cannot."""
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path}: give a name that ends in .parquet or .csv")
    try:
        with replace_file(path) as part:
            if path.suffix == ".parquet":
                frame.to_parquet(part, index=False)
            else:
                frame.rename(columns=escape_formula).map(escape_formula).to_csv(part, index=False)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def escape_formula(value: Any) -> Any:
    """The value, with an apostrophe before text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and normalize("NFKC", value[:1]).startswith(FORMULA) else value


def main(arguments: list[str] | None = None) -> int:
    """Write the table; return the exit code. Raises InputError if a run cannot be read, or the table not be written."""
    parser = argparse.ArgumentParser(prog="tunegrid export", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN.json")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.parquet|.csv")
    parser.add_argument("--rows", action="store_true", help="one row per test row")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a record, and nothing else")
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
    try:
        frame, sentences = scored_rows(runs) if options.rows else (figure_rows(runs), [])
    except OverflowError as error:
        raise InputError(f"a record holds a number too large for a table ({error}); leave its run out") from None
    write_table(frame, options.output)
    for sentence in sentences:
        say(sentence, error=True)
    say(f"wrote {options.output}: {len(frame)} rows of {len(frame.columns)} columns")
    return 0
