"""Builds the train, validation and test rows of a `Task` for a `Profile`.

Splits depend on no backbone, method or training seed, so that scores can be compared example by
example. Each row is checked before anything trains on it.
"""

import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from random import Random
from typing import Any, NamedTuple

from tunegrid.data.sources import Row, Table, check_split, context, identity, tables
from tunegrid.errors import InputError
from tunegrid.grid.recipes import Profile
from tunegrid.grid.tasks import Carve, Problem, Task

SPLIT_SEED = 42  # the study's seed
MOST_CONTRADICTIONS = 0.05  # maximum share of texts with several labels, since annotators disagree
JSON_NAMES: dict[type, str] = {
    int: "a whole number",
    str: "a text",
    dict: "an object",
    list: "a list",
    float: "a number",
}
TARGET_TYPES: dict[Problem, type] = {
    Problem.CLASSIFY: int,
    Problem.EXTRACT: dict,
    Problem.GENERATE: str,
}


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The rows to train on, to choose a checkpoint with, and to score.

    Attributes:
        origins: where each split came from.
        revision: the hub's commit at which the rows were read; None if unknown or local.
        dropped: the number of rows left out of each split because their text is also in a scored
            split.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    origins: Mapping[str, str]
    revision: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all rows in order, as sixteen hex digits."""
        digest = hashlib.sha256()
        encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
        for rows in (self.train, self.validation, self.test):
            digest.update(b"[")
            for index, row in enumerate(rows):
                digest.update(f"{', ' if index else ''}{encode(row)}".encode())
            digest.update(b"]")
        return digest.hexdigest()[:16]


class TableSlice(NamedTuple):
    """Some rows of a table; `origin` says where they came from."""

    table: Table
    indices: Sequence[int]
    origin: str


def load_splits(task: Task, profile: Profile, by_name: Mapping[str, Table] | None = None) -> Splits:
    """Returns the rows of all three splits, capped and checked; no text is in two splits.

    `by_name` may hold tables that are already open. A text that is in test is dropped from train
    and validation; a text that is in validation is dropped from train. With `profile.own_test`, a
    task that has an `own_test` split is scored on that split.

    Raises InputError if the task, a file or a row cannot be used.
    """
    check_task(task)
    slices = _slices(task, profile, by_name or tables(task, profile.data_root))
    columns = task.identity or (*task.text, *task.context_columns)
    rows: dict[str, Sequence[Row]] = {}
    dropped: dict[str, int] = {}
    scored_texts: set[int] = set()
    for name in ("test", "validation", "train"):  # a text stays in the first of these that has it
        table_slice = slices[name]
        texts = array("Q")  # hashes; the texts themselves are not kept
        inputs = array("Q")  # hashes over only the columns that a model reads
        labels = array("q")
        for index, row in zip(
            table_slice.indices, table_slice.table.take(table_slice.indices), strict=True
        ):
            check_row(task, row, index + table_slice.table.first, table_slice.table.origin)
            texts.append(identity(row, columns))
            if task.labels:
                inputs.append(
                    identity(row, task.text + task.text_pair) if task.identity else texts[-1]
                )
                labels.append(row[task.target])
        check_labels_agree(inputs, labels, table_slice.origin)
        is_new = [text not in scored_texts for text in texts]
        indices = array("q", compress(table_slice.indices, is_new))
        if not indices:
            raise InputError(
                f"{table_slice.origin}: no rows to use: each is in a scored split, too; "
                "give other files"
            )
        if name == "train":
            check_classes(task, set(compress(labels, is_new)), table_slice.origin)
        rows[name] = table_slice.table.take(indices)
        dropped[name] = len(table_slice.indices) - len(indices)
        scored_texts.update(texts)
    return Splits(
        **rows,
        origins={name: slices[name].origin for name in ("validation", "test", "train")},
        revision=slices["train"].table.revision,
        dropped={name: dropped[name] for name in ("validation", "train")},
    )


def scoring_rule(task: Task, profile: Profile) -> str | Carve:
    """The split to score on, or the rule that carves it out of train."""
    return task.own_test if profile.own_test and task.own_test else task.test


def _slices(task: Task, profile: Profile, by_name: Mapping[str, Table]) -> dict[str, TableSlice]:
    """The rows of each split, sampled down to the cap that the profile or the task sets."""
    rules = {"validation": task.validation, "test": scoring_rule(task, profile)}
    for split in (task.train, *rules.values()):
        if not isinstance(split, Carve):
            check_split(by_name, split, task)
            if not len(by_name[split]):
                raise InputError(
                    f"{by_name[split].origin}: no rows to use; "
                    f"split {split!r} of {task.folder} is empty"
                )
    train = by_name[task.train]
    slices: dict[str, TableSlice] = {}
    pool: Sequence[int] = range(len(train))
    for name, rule in rules.items():
        if isinstance(rule, Carve):
            indices = carve(task, train, pool, rule)
            carved_indices = frozenset(indices)
            pool = array("q", (index for index in pool if index not in carved_indices))
            slices[name] = TableSlice(train, indices, f"{rule.share:.0%} of {train.origin}")
        else:
            table = by_name[rule]
            slices[name] = TableSlice(table, range(len(table)), table.origin)
    slices["train"] = TableSlice(train, pool, train.origin)
    for name, table_slice in slices.items():
        cap = profile.cap(task.id, name)
        if name == "train" and cap is None and profile.train_rows is None:
            cap = task.train_rows
        if not table_slice.indices:
            needs = f"each split of {task.folder} needs some, this one is too small"
            raise InputError(f"{table_slice.origin}: no rows to use; {needs}")
        if cap is not None and cap < len(table_slice.indices):
            chosen = sorted(Random(SPLIT_SEED).sample(table_slice.indices, cap))
            slices[name] = table_slice._replace(indices=array("q", chosen))
    return slices


def carve(task: Task, table: Table, pool: Sequence[int], rule: Carve) -> Sequence[int]:
    """Draws from `pool` the indices of the rows to set aside, with the seed `SPLIT_SEED`.

    About `rule.share` of the whole table is set aside or, with `rule.group`, that share of the
    groups in the pool.
    """
    rng = Random(SPLIT_SEED)
    column = rule.stratify or rule.group
    values: Sequence[Any] = [None] * len(table)
    if column:
        values = table.column(column)
        for number, value in enumerate(values, table.first):
            if not isinstance(value, task.columns[column]):
                raise InputError(f"{table.origin}, row {number}: {type_fault(task, column, value)}")
    if rule.group:
        groups = sorted({values[i] for i in pool})
        chosen_groups = set(rng.sample(groups, max(1, round(rule.share * len(groups)))))
        return array("q", (i for i in pool if values[i] in chosen_groups))
    strata: dict[Any, array[int]] = defaultdict(lambda: array("q"))
    for i in pool:
        strata[values[i]].append(i)
    sizes = Counter(values)
    chosen: list[int] = []
    for value, indices in sorted(strata.items()):
        chosen += rng.sample(indices, round(rule.share * sizes[value]))
    return array("q", sorted(chosen))


def check_files(task: Task, profile: Profile) -> Splits | None:
    """The rows of all splits, read without `datasets`; None if only some could be checked.

    Only the first rows of large files are read, and none from the hub. Raises InputError for a file
    that does not exist, or whose rows the task cannot use.
    """
    by_name = tables(task, profile.data_root, first=True)
    if not by_name:  # rows are on the hub
        return None
    for split in (task.train, task.validation, scoring_rule(task, profile)):
        if isinstance(split, Carve):
            continue
        check_split(by_name, split, task)
        table = by_name[split]
        rows = table.read(range(len(table)))
        for number, row in enumerate(rows, table.first):
            check_row(task, row, number, table.origin)
        if task.labels and split == task.train and table.is_whole:  # a longer file may be sorted
            check_classes(task, {row[task.target] for row in rows}, table.origin)
    if all(table.is_whole for table in by_name.values()):
        return load_splits(task, profile, by_name)
    return None


def check_task(task: Task) -> None:
    """Raises InputError if a task's columns do not suit its problem or its split rules."""
    if task.problem is Problem.EXTRACT and len(task.text_pair) != 1:
        raise InputError(
            f"task {task.id!r}: text_pair must name one column, the text that holds the answers"
        )
    if task.problem is Problem.GENERATE and task.text_pair:
        raise InputError(
            f"task {task.id!r}: generation reads one text; "
            "name all its columns in `text`, none in text_pair"
        )
    kinds = dict.fromkeys((*task.text, *task.text_pair), str) | {
        task.target: TARGET_TYPES[task.problem]
    }
    for column, kind in kinds.items():
        if task.columns[column] is not kind:
            hint = "; rows may hold names of labels there" if kind is int else ""
            needs = f"for {task.problem}, column {column!r} must hold {JSON_NAMES[kind]}{hint}"
            raise InputError(f"task {task.id!r}: {needs}")
    for rule in (task.validation, task.test):
        if not isinstance(rule, Carve):
            continue
        key = rule.stratify or rule.group
        if key and key not in task.columns:
            raise InputError(
                f"task {task.id!r} is split by column {key!r}, which is not among its columns"
            )


def check_classes(task: Task, labels: Collection[int], origin: str) -> None:
    """Raises InputError if all training rows have the same label, so there is nothing to learn."""
    if len(labels) == 1:
        raise InputError(
            f"{origin}: all training rows are {task.labels[min(labels)]!r}; "
            "give rows of another class, too"
        )


def check_labels_agree(texts: Sequence[int], labels: Sequence[int], origin: str) -> None:
    """Raises InputError if more than `MOST_CONTRADICTIONS` of a split's texts have several labels.

    No model can learn such texts or score well on them.
    """
    import numpy as np

    if not labels:
        return
    order = np.lexsort((labels, texts))
    hashes = np.asarray(texts)[order]
    classes = np.asarray(labels)[order]
    contradicts = (hashes[1:] == hashes[:-1]) & (classes[1:] != classes[:-1])
    count = len(np.unique(hashes[1:][contradicts]))
    total = len(np.unique(hashes))
    if count > MOST_CONTRADICTIONS * total:
        raise InputError(
            f"{origin}: {count} of {total} texts are there with several labels; "
            "keep one row of each"
        )


def check_row(task: Task, row: Row, index: int, origin: str) -> None:
    """Raises InputError if the task cannot use a row; `index` is the row's number in its file."""
    fault = _fault(task, row)
    if fault:
        name = f" (id {row['id']})" if "id" in row else ""
        raise InputError(f"{origin}, row {index}{name}: {fault}")


def _fault(task: Task, row: Row) -> str | None:
    """The reason why the task cannot use a row; None if it can."""
    for name, kind in task.columns.items():
        if not isinstance(row.get(name), kind):
            return type_fault(task, name, row.get(name))
    return _content_fault(task, row) or _surrogate_fault(task, row)


def _surrogate_fault(task: Task, row: Row) -> str | None:
    """Describes a lone surrogate in a row; None if there is none.

    JSON can hold a lone surrogate, but UTF-8 and tokenizers cannot.
    """
    values = [row.get(name) for name in task.columns]
    texts = [value for value in values if isinstance(value, str)]
    others = [value for value in values if isinstance(value, dict | list)]
    try:
        "".join(texts).encode()
        if others:
            json.dumps(others, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        return f"a column holds a lone surrogate ({surrogate!r}), which is not text"
    return None


def type_fault(task: Task, column: str, value: Any) -> str:
    """Describes a value of the wrong type for its column."""
    if task.labels and column == task.target and isinstance(value, str):
        return _label_fault(task, {column: value}) or ""
    kind = task.columns[column]
    return f"column {column!r} holds {value!r}, not {JSON_NAMES.get(kind, kind.__name__)}"


def _content_fault(task: Task, row: Row) -> str | None:
    """The fault in a row whose values have the right types; None if it has no fault."""
    if task.problem is Problem.CLASSIFY:
        return _label_fault(task, row)
    if task.problem is Problem.EXTRACT:
        return _answer_fault(task, row)
    if not any(row[column].strip() for column in task.text):
        verb = "is" if len(task.text) == 1 else "are"
        return f"{' and '.join(map(repr, task.text))} {verb} empty"
    return None if row[task.target].strip() else f"{task.target!r} is empty"


def _label_fault(task: Task, row: Row) -> str | None:
    label = row[task.target]
    count = len(task.labels)
    if label in range(count):
        return None
    choices = ", ".join(f"{name!r} or {number}" for number, name in enumerate(task.labels[:6]))
    if count > 6:
        choices += f", ... {task.labels[-1]!r} or {count - 1}"
    return f"invalid label {label!r} in column {task.target!r}: expected {choices}"


def _answer_fault(task: Task, row: Row) -> str | None:
    texts, starts = row[task.target].get("text"), row[task.target].get("answer_start")
    passage = context(task, row)
    if (
        not isinstance(texts, list)
        or not isinstance(starts, list)
        or not 0 < len(texts) == len(starts)
    ):
        lists = "two lists of one length, 'text' and 'answer_start', with at least one entry"
        return f"{task.target} need {lists}"
    for text, start in zip(texts, starts, strict=True):
        answer = f"answer {text!r}"
        if not isinstance(text, str) or not text or not isinstance(start, int) or start < 0:
            expected = "a text that is not empty and a start of at least 0"
            return f"{answer} at answer_start {start!r}: expected {expected}"
        actual = passage[start : start + len(text)]
        if actual != text:
            return f"{answer} is not at answer_start {start}: the context has {actual!r} there"
    return None
