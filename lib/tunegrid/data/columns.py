"""Reads the texts and answers of a row from its task's columns."""

from collections.abc import Sequence
from hashlib import blake2b

from tunegrid.data.sources import Row
from tunegrid.grid.tasks import Task


def joined(row: Row, columns: Sequence[str]) -> str:
    """The columns' texts, joined by a line break; an empty text leaves no line break behind."""
    return "\n".join(row[column] for column in columns if row[column])


def identity(row: Row, columns: Sequence[str]) -> str:
    """What a row says in some columns, whatever its case and white space: two rows of one identity are one text."""
    return " ".join(" ".join(row[column] for column in columns).lower().split())


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
