"""Runs as one table: `tunegrid export RUN.json ... -o runs.parquet` (or .csv), for pandas, DuckDB or a spreadsheet.

A row is a figure of a cell and seed, named as in the record, with its device, versions, date and commit; a loss has its update.
With --rows a row is a test row: what it says, the prediction and its points. Tables for a paper: `tunegrid compare`.
`tunegrid export --schema` prints the JSON schema of a record.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import schema
from tunegrid.results.files import read_saved
from tunegrid.results.tidy import Columns, figures, rows_of
from tunegrid.terminal import say

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet takes a cell of a CSV file for a formula, and runs it


def as_text(value: Any) -> Any:
    """The value, with an apostrophe before text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_table(columns: Columns, path: Path) -> None:
    """Write columns in the format that the file's name asks for; raises InputError for any other, or where it cannot."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    writers = {".parquet": pq.write_table, ".csv": pyarrow.csv.write_csv}
    if path.suffix == ".csv":
        columns = {as_text(name): list(map(as_text, values)) for name, values in columns.items()}
    if path.suffix not in writers:
        raise InputError(f"{path}: give a name that ends in {' or '.join(writers)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writers[path.suffix](pa.table(columns), path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None
    except (OverflowError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot hold these figures ({error}); tunegrid audit checks a run") from None


def main(arguments: list[str] | None = None) -> int:
    """Write the table; return the exit code."""
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
    try:
        runs = [read_saved(path) for path in options.runs]
        records = [(run.path, record) for run in runs for record in run.records]
        columns, missing = rows_of(records) if options.rows else (figures(runs), [])
        write_table(columns, options.output)
    except InputError as error:
        refuse(parser, error)
    for sentence in missing:
        say(sentence, error=True)
    say(f"wrote {options.output}: {len(columns['run'])} rows of {len(columns)} columns")
    return 0
