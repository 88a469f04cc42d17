"""Describes a task's rows: split sizes, labels, an example, and reasons to distrust scores."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from tunegrid.data.sources import Row, answer_texts, stitch
from tunegrid.data.splits import Splits
from tunegrid.grid.tasks import Problem, Task
from tunegrid.words import count, shorten, some

SPLITS = ("train", "validation", "test")
NAME_WIDTH = 12  # characters for the name of a split


def overview_lines(task: Task, splits: Splits, width: int) -> list[str]:
    """Lists each split's size and label counts, then a training row, wrapped or cut to `width`."""
    lines = [f"rows of {task.id}:"]
    for name in SPLITS:
        rows: Sequence[Row] = getattr(splits, name)
        text = f"{len(rows):>7,}"
        if task.labels:
            numbers = label_counts(task, rows)
            text += "  " + ", ".join(f"{label} {number:,}" for label, number in numbers.items())
        indent = " " * (NAME_WIDTH + 11)
        lines += wrap(f"  {name:{NAME_WIDTH}}{text}", width, subsequent_indent=indent)
    left_out = sum(splits.dropped.values())
    if left_out:
        lines.append(
            f"  {'left out':{NAME_WIDTH}}{left_out:>7,}  texts that a scored split has, too"
        )
    texts, target = example(task, splits.train[0])
    learned = f" -> {shorten(target, width // 3)}"
    shown = shorten(texts, width - NAME_WIDTH - 2 - len(learned))
    lines.append(f"  {'example':{NAME_WIDTH}}{shown}{learned}")
    return lines


def label_counts(task: Task, rows: Sequence[Row]) -> Mapping[str, int]:
    """The number of rows with each label."""
    numbers = Counter(row[task.target] for row in rows)
    return {label: numbers[number] for number, label in enumerate(task.labels)}


def example(task: Task, row: Row) -> tuple[str, str]:
    """A row's texts and its target, quoted so that neither contains a line break."""
    target = row[task.target]
    if task.problem is Problem.CLASSIFY:
        target = task.labels[target]
    if task.problem is Problem.EXTRACT:
        target = answer_texts(task, row)[0]
    texts = [row[column] for column in (*task.text, *task.text_pair)]
    return " | ".join(map(repr, texts)), repr(target)


def doubts(task: Task, splits: Splits) -> Iterator[str]:
    """Yields a sentence for each reason to distrust the scores.

    Reasons are classes missing from train, scored splits with only one class, and rows without
    text.
    """
    if task.labels:
        numbers_by_split = {name: label_counts(task, getattr(splits, name)) for name in SPLITS}
        missing = [label for label, number in numbers_by_split["train"].items() if not number]
        if missing:
            yield f"train has no row of {some([*map(repr, missing)])}: no model can learn that"
        for name in SPLITS[1:]:
            labels = [label for label, number in numbers_by_split[name].items() if number]
            if len(labels) == 1:
                yield (
                    f"all rows of {name} are {labels[0]!r}: "
                    "its scores cannot tell a model from a constant answer"
                )
    for name in SPLITS:
        columns = (*task.text, *task.text_pair)
        rows: Sequence[Row] = getattr(splits, name)
        empty = sum(not stitch(row, columns).strip() for row in rows)
        if empty:
            verb = "has" if empty == 1 else "have"
            yield f"{count(empty, 'row')} of {name} {verb} no text: remove them"
