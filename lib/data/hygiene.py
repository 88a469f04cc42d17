"""Checks on rows before anything trains on them. In: rows of one split. Out: nothing, or an InputError naming the row."""

from collections.abc import Callable, Sequence
from typing import Any

from lib.data.sources import Row
from lib.errors import InputError
from lib.grid.tasks import Problem, Task

JSON_NAMES: dict[type, str] = {int: "a whole number", str: "a text", dict: "an object"}


def check_rows(task: Task, rows: Sequence[Row], places: Sequence[int], origin: str) -> None:
    """Raises InputError for the first row that the task cannot use; `places` are the rows' numbers in their file."""
    find_fault = FAULTS[task.problem]
    for place, row in zip(places, rows, strict=True):
        if fault := _wrong_type(task, row) or find_fault(row):
            name = f" (id {row['id']})" if "id" in row else ""
            raise InputError(f"{origin}, row {place}{name}: {fault}")


def check_column(task: Task, column: str, values: Sequence[Any], origin: str) -> None:
    """Raises InputError for the first value that is not of the column's type: before rows are split by it."""
    for place, value in enumerate(values):
        if not isinstance(value, task.columns[column]):
            raise InputError(f"{origin}, row {place}: {_type_fault(task, column, value)}")


def _type_fault(task: Task, column: str, value: Any) -> str:
    return f"column {column!r} holds {value!r}, not {JSON_NAMES[task.columns[column]]}"


def _wrong_type(task: Task, row: Row) -> str | None:
    wrong = (name for name, kind in task.columns.items() if not isinstance(row.get(name), kind))
    return next((_type_fault(task, name, row.get(name)) for name in wrong), None)


def _label_fault(row: Row) -> str | None:
    return None if row["label"] in (0, 1) else f"label {row['label']} is neither 0 (negative) nor 1 (positive)"


def _answer_fault(row: Row) -> str | None:
    texts, starts = row["answers"].get("text"), row["answers"].get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list) and 0 < len(texts) == len(starts)):
        return "answers need two lists of one length, 'text' and 'answer_start', with at least one entry"
    faults = (_span_fault(row["context"], text, start) for text, start in zip(texts, starts, strict=True))
    return next((fault for fault in faults if fault), None)


def _span_fault(context: str, text: Any, start: Any) -> str | None:
    if not isinstance(text, str) or not text or not isinstance(start, int) or start < 0:
        return f"answer {text!r} at answer_start {start!r}: a text that is not empty, and a place from 0 on, are needed"
    found = context[start : start + len(text)]
    return None if found == text else f"answer {text!r} does not stand at answer_start {start}, where the context has {found!r}"


def _summary_fault(row: Row) -> str | None:
    return next((f"{column!r} is empty" for column in ("article", "highlights") if not row[column].strip()), None)


FAULTS: dict[Problem, Callable[[Row], str | None]] = {
    Problem.CLASSIFY: _label_fault,
    Problem.EXTRACT: _answer_fault,
    Problem.GENERATE: _summary_fault,
}
