"""Reads a row's texts and answers from its task's columns, checks it before anything trains on it, and makes wrong targets."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import Any

from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.tasks import Carve, Problem, Task

JSON_NAMES: dict[type, str] = {int: "a whole number", str: "a text", dict: "an object", list: "a list", float: "a number"}
TARGET_TYPES: dict[Problem, type] = {Problem.CLASSIFY: int, Problem.EXTRACT: dict, Problem.GENERATE: str}


def joined(row: Row, columns: Sequence[str]) -> str:
    """The columns' texts, joined by a line break; an empty text leaves no line break behind."""
    return "\n".join(row[column] for column in columns if row[column])


def identity(row: Row, columns: Sequence[str]) -> str:
    """What a row says in some columns, whatever its case and white space: two rows of one identity are one text."""
    return " ".join(" ".join(str(row[column]) for column in columns).lower().split())


def text_hash(text: str) -> int:
    """Eight bytes of a text's hash, to hold in its place; any two of three million texts share one with a chance of 2.4e-7."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def context(task: Task, row: Row) -> str:
    """The text that holds an extraction task's answers."""
    text: str = row[task.text_pair[0]]
    return text


def answer_texts(task: Task, row: Row) -> list[str]:
    """Every annotated answer of an extraction task, the first one first."""
    texts: list[str] = row[task.target]["text"]
    return texts


def answer_span(task: Task, row: Row) -> tuple[int, int]:
    """Where the first annotated answer begins and ends in the context, in characters; the end is exclusive.

    Answers repeat in the context: the annotated start counts, not the first occurrence (SQuAD v1.1).
    """
    start: int = row[task.target]["answer_start"][0]
    return start, start + len(answer_texts(task, row)[0])


def check_task(task: Task) -> None:
    """Raises InputError where the columns of a task cannot serve its kind of problem, or it splits by one it does not have."""
    if task.problem is Problem.EXTRACT and len(task.text_pair) != 1:
        raise InputError(f"task {task.id!r}: text_pair must name one column, the text that holds the answers")
    if task.problem is Problem.GENERATE and task.text_pair:
        raise InputError(f"task {task.id!r}: generation reads one text; name all its columns in `text`, none in text_pair")
    kinds = dict.fromkeys((*task.text, *task.text_pair), str) | {task.target: TARGET_TYPES[task.problem]}
    for column, kind in kinds.items():
        if task.columns[column] is not kind:
            hint = "; rows may have labels' names there" if kind is int else ""
            raise InputError(f"task {task.id!r}: for {task.problem}, column {column!r} must hold {JSON_NAMES[kind]}{hint}")
    for rule in (task.validation, task.test):
        by = (rule.stratify or rule.group) if isinstance(rule, Carve) else None
        if by and by not in task.columns:
            raise InputError(f"task {task.id!r} is split by column {by!r}, which is not among its columns")


def check_row(task: Task, row: Row, index: int, origin: str) -> None:
    """Raises InputError where the task cannot use a row; `index` is its number in its file."""
    wrong = (name for name, kind in task.columns.items() if not isinstance(row.get(name), kind))
    fault = next((type_fault(task, name, row.get(name)) for name in wrong), None) or FAULTS[task.problem](task, row)
    try:
        json.dumps([row.get(name) for name in task.columns], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, which no tokenizer and no UTF-8 takes
        fault = fault or f"a column holds half a character ({error.object[error.start]!r}), which is no text"
    if fault:
        name = f" (id {row['id']})" if "id" in row else ""
        raise InputError(f"{origin}, row {index}{name}: {fault}")


def type_fault(task: Task, column: str, value: Any) -> str:
    """What is wrong with a value that is not of its column's type."""
    if task.labels and column == task.target and isinstance(value, str):
        return _label_fault(task, {column: value}) or ""
    kind = task.columns[column]
    return f"column {column!r} holds {value!r}, not {JSON_NAMES.get(kind, kind.__name__)}"


def _label_fault(task: Task, row: Row) -> str | None:
    label, count = row[task.target], len(task.labels)
    if label in range(count):
        return None
    named = ", ".join(f"{number} ({name})" for number, name in enumerate(task.labels[:6]))
    rest = f", ... {count - 1} ({task.labels[-1]})" if count > 6 else ""
    return f"invalid label {label!r} in column {task.target!r}: expected {named}{rest}"


def _answer_fault(task: Task, row: Row) -> str | None:
    texts, starts, passage = row[task.target].get("text"), row[task.target].get("answer_start"), context(task, row)
    if not (isinstance(texts, list) and isinstance(starts, list) and 0 < len(texts) == len(starts)):
        return f"{task.target} need two lists of one length, 'text' and 'answer_start', with at least one entry"
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text or not isinstance(start, int) or start < 0:
            return f"answer {text!r} at answer_start {start!r}: a text that is not empty, and a place from 0 on, are needed"
        if (there := passage[start : start + len(text)]) != text:
            return f"answer {text!r} does not stand at answer_start {start}, where the context has {there!r}"
    return None


def _generation_fault(task: Task, row: Row) -> str | None:
    if not any(row[column].strip() for column in task.text):
        return f"{' and '.join(map(repr, task.text))} {'is' if len(task.text) == 1 else 'are'} empty"
    return None if row[task.target].strip() else f"{task.target!r} is empty"


FAULTS: Mapping[Problem, Callable[[Task, Row], str | None]] = {
    Problem.CLASSIFY: _label_fault,
    Problem.EXTRACT: _answer_fault,
    Problem.GENERATE: _generation_fault,
}


SEED = 0  # the same rows are wrong for every cell and every seed of training


def noisy(task: Task, rows: Sequence[Row], share: float) -> list[Row]:
    """The rows, a share of which have a wrong target: another label, another word of the passage, the next one's text."""
    wrong: Any
    rng, mixed = Random(SEED), list(rows)
    chosen = sorted(rng.sample(range(len(rows)), round(share * len(rows))))
    for index, following in zip(chosen, [*chosen[1:], *chosen[:1]], strict=True):
        row = rows[index]
        if task.problem is Problem.CLASSIFY:
            wrong = rng.choice([label for label in range(len(task.labels)) if label != row[task.target]])
        elif task.problem is Problem.EXTRACT:
            wrong = {**row[task.target], **_other_word(task, row, rng)}
        else:
            wrong = rows[following][task.target]
        mixed[index] = row | {task.target: wrong}
    return mixed


def _other_word(task: Task, row: Row, rng: Random) -> dict[str, list[object]]:
    """A word of the passage that is no part of the right answer; the right one where there is none."""
    passage, (start, end) = context(task, row), answer_span(task, row)
    words = [(word.start(), word.group()) for word in re.finditer(r"\S+", passage)]
    others = [(at, word) for at, word in words if (at >= end or at + len(word) <= start) and any(map(str.isalnum, word))]
    place, word = rng.choice(others or [(start, passage[start:end])])
    return {"text": [word], "answer_start": [place]}
