"""Runs as one table: `tunegrid export RUN.json ... -o runs.parquet` (or .csv), for pandas, DuckDB or a spreadsheet.

A row is a figure of a cell and seed, named as in the record, with its device, versions, date and commit; a loss has its update.
With --rows a row is a test row: what it says, the prediction and its points. Tables for a paper: `tunegrid compare`.
`tunegrid export --schema` prints the JSON schema of a record.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import Record, schema, to_json
from tunegrid.results.examples import read, read_texts
from tunegrid.results.files import SavedRun, read_saved
from tunegrid.terminal import say

MEASURED = ("scores", "bounds", "parameters", "training", "evaluation", "memory", "throughput", "flops")
Columns = Mapping[str, Sequence[Any]]
Runs = Iterable[tuple[Path, Record]]  # each record with the file that it is from


def figures(runs: Iterable[SavedRun]) -> Columns:
    """One row per figure of each cell and seed; its name is its place in the record, as in `memory.ledger.weights_bytes`.

    A loss has its update, from 1; other figures have none.
    """
    return _columns(
        circumstances(run, record) | {"metric": name, "update": update, "value": value}
        for run in runs
        for record in run.records
        for name, update, value in _measured(record)
    )


def circumstances(run: SavedRun, record: Record) -> dict[str, Any]:
    """What tells a record from the others: its key; when, by which commit, on which device and by which versions it ran."""
    saved = {"date": run.when or None, "commit": run.commit or None, "device": record.device.name if record.device else None}
    return key_of(run.path, record) | saved | {f"versions.{name}": version for name, version in record.versions.items()}


def _measured(record: Record) -> Iterator[tuple[str, int | None, float]]:
    """Metric, update and value of every figure."""
    for part, content in to_json(record).items():
        if part in MEASURED:
            yield from ((name, None, value) for name, value in leaves(part, content))
    losses = record.training.losses if record.training else ()
    yield from (("training.losses", update, loss) for update, loss in enumerate(losses, 1) if loss is not None)


def leaves(name: str, content: Any) -> Iterator[tuple[str, float]]:
    """Every number in a part of a record; no lists, nothing for what was not measured. Raises InputError for one too large."""
    if isinstance(content, dict):
        for key, item in content.items():
            yield from leaves(f"{name}.{key}", item)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        try:
            yield name, float(content)
        except OverflowError:
            raise InputError(f"{name} is too large a figure for a table") from None


def rows_of(runs: Runs) -> tuple[Columns, list[str]]:
    """One row per test row, with one column per metric; and a sentence for every record whose rows are not there."""
    table: list[dict[str, Any]] = []
    missing = []
    for path, record in runs:
        rows = list(_rows(path, record))
        table += rows
        if not rows:
            missing.append(f"{path}: {record.cell}, seed {record.seeds.seed}, has no test rows beside it in examples/")
    if not table:
        raise InputError("none of these runs has its test rows beside it: copy the folder examples along with a run's JSON")
    return _columns(table), missing


def _rows(path: Path, record: Record) -> Iterator[dict[str, Any]]:
    examples, texts = read(record, path), read_texts(record, path)
    if examples is None:
        return
    references = texts.references if texts else examples.references
    for index, id_ in enumerate(examples.ids):
        yield key_of(path, record) | {
            "row": index + 1,
            "id": id_,
            "input": texts.inputs[index] if texts else None,
            "reference": references[index] if references else None,
            "prediction": examples.predictions[index],
            **{metric: points[index] for metric, points in examples.points.items()},
        }


def key_of(path: Path, record: Record) -> dict[str, Any]:
    """What tells a record from the others."""
    names = ("profile", "cell", "backbone", "task", "method", "status", "main_score")
    seeds = {"seed": record.seeds.seed, "perturbation": record.seeds.perturbation}
    return {"run": path.name, **{name: getattr(record, name) for name in names}, **seeds}


def _columns(rows: Iterable[Mapping[str, Any]]) -> Columns:
    """Rows as columns; a row without a column has a null in it."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


FORMULA = tuple("=+-@\t\r\n")  # with which a spreadsheet takes a cell of a CSV file for a formula, and runs it


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
        raise InputError(f"{path} cannot hold these figures ({error})") from None


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
