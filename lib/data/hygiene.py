"""Checks on rows before anything trains on them. In: rows of one split. Out: nothing, or an InputError naming the row."""

from collections.abc import Callable, Sequence

from lib.data.sources import Row
from lib.errors import InputError
from lib.grid.tasks import Problem, Task


def check_rows(task: Task, rows: Sequence[Row], places: Sequence[int], origin: str) -> None:
    """Raises InputError for the first row that the task cannot use; `places` are the rows' numbers in their file."""
    find_fault = FAULTS[task.problem]
    for place, row in zip(places, rows, strict=True):
        if fault := _wrong_type(task, row) or find_fault(row):
            name = f" (id {row['id']})" if "id" in row else ""
            raise InputError(f"{origin}, row {place}{name}: {fault}")


def _wrong_type(task: Task, row: Row) -> str | None:
    for column, kind in task.columns.items():
        if not isinstance(row.get(column), kind):
            return f"column {column!r} holds {row.get(column)!r}, not a {kind.__name__}"
    return None


def _label_fault(row: Row) -> str | None:
    return None if row["label"] in (0, 1) else f"label {row['label']} is neither 0 (negative) nor 1 (positive)"


def _answer_fault(row: Row) -> str | None:
    texts, starts = row["answers"].get("text"), row["answers"].get("answer_start")
    if not texts or not starts or len(texts) != len(starts):
        return "answers need as many 'answer_start' as 'text', at least one"
    for text, start in zip(texts, starts, strict=True):
        found = row["context"][start : start + len(text)]
        if found != text:
            return f"answer {text!r} does not stand at answer_start {start}, where the context has {found!r}"
    return None


def _summary_fault(row: Row) -> str | None:
    return next((f"{column!r} is empty" for column in ("article", "highlights") if not row[column].strip()), None)


FAULTS: dict[Problem, Callable[[Row], str | None]] = {
    Problem.CLASSIFY: _label_fault,
    Problem.EXTRACT: _answer_fault,
    Problem.GENERATE: _summary_fault,
}
