"""Train, validation and test rows. In: a `Task` and a `Profile`. Out: `Splits`, the same for every method and backbone.

A split's rows depend on the data and on `SPLIT_SEED` only, so that a triple's scores can be paired example by example.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from lib.data.columns import identity
from lib.data.hygiene import check_column, check_rows, check_task
from lib.data.sources import Row, Table, tables
from lib.errors import InputError
from lib.grid.profiles import Profile
from lib.grid.tasks import Carve, Task

SPLIT_SEED = 42  # the study's


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Rows to train on, to choose a checkpoint on, to score on.

    Attributes:
        origins: where each split came from.
        revision: the hub's commit that the rows were read at; None for a local folder.
        dropped: how many rows were left out of a split because the same text stands in one that scores it.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    origins: Mapping[str, str]
    revision: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all rows in order: equal rows, equal fingerprint."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            digest.update(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode())
        return digest.hexdigest()[:16]


def load_splits(task: Task, profile: Profile) -> Splits:
    """Rows of all three splits, capped, checked and without copies; raises InputError for anything that cannot be used.

    A text that stands in test is dropped from train and validation, one that stands in validation from train.
    With `profile.own_test`, a task that has an `own_test` split is scored on it; any other task keeps its own rule.
    """
    check_task(task)
    by_name = tables(task, profile.data_root)
    train = _named(by_name, "train", task)
    pool: Sequence[int] = range(len(train))
    parts: dict[str, tuple[Table, Sequence[int], str]] = {}
    test = task.own_test if profile.own_test and task.own_test else task.test
    for name, rule in (("validation", task.validation), ("test", test)):
        if isinstance(rule, Carve):
            aside = carve(task, train, pool, rule)
            pool = sorted(set(pool) - set(aside))
            parts[name] = train, aside, f"{rule.share:.0%} of {train.origin}"
        else:
            table = _named(by_name, rule, task)
            parts[name] = table, range(len(table)), table.origin
    parts["train"] = train, pool, train.origin
    rows = {name: _rows(task, *part, profile.cap(task.id, name)) for name, part in parts.items()}
    origins = {name: origin for name, (_, _, origin) in parts.items()}
    apart = {
        "validation": _without(task, rows["validation"], rows["test"]),
        "train": _without(task, rows["train"], [*rows["validation"], *rows["test"]]),
    }
    for name, kept in apart.items():
        if not kept:
            raise InputError(f"{origins[name]}: no rows to use; each stands in a split that scores, too, so give other files")
    dropped = {name: len(rows[name]) - len(kept) for name, kept in apart.items()}
    return Splits(**rows | apart, origins=origins, revision=train.revision, dropped=dropped)


def _without(task: Task, rows: list[Row], scoring: Sequence[Row]) -> list[Row]:
    """The rows whose text is in none of those that score: real data sets hold some texts twice."""
    columns = task.identity or (*task.text, *task.text_pair)
    taken = {identity(row, columns) for row in scoring}
    return [row for row in rows if identity(row, columns) not in taken]


def carve(task: Task, table: Table, pool: Sequence[int], rule: Carve) -> list[int]:
    """Places of the pool's rows to set aside: about `rule.share` of the whole table, drawn with `SPLIT_SEED`."""
    rng = Random(SPLIT_SEED)
    column = rule.stratify or rule.group
    values: Sequence[Any] = table.column(column) if column else [None] * len(table)
    if column:
        check_column(task, column, values, table.origin)
    if rule.group:
        groups = sorted({values[i] for i in pool})
        chosen = set(rng.sample(groups, max(1, round(rule.share * len(groups)))))
        return [i for i in pool if values[i] in chosen]
    strata = defaultdict(list)
    for i in pool:
        strata[values[i]].append(i)
    sizes = Counter(values)
    return sorted(i for value, places in sorted(strata.items()) for i in rng.sample(places, round(rule.share * sizes[value])))


def _named(by_name: Mapping[str, Table], split: str, task: Task) -> Table:
    if split not in by_name:
        raise InputError(f"{task.folder} has no split {split!r}, only {', '.join(sorted(by_name))}; one file or folder a split")
    if not len(by_name[split]):
        raise InputError(f"{by_name[split].origin}: no rows to use; split {split!r} of {task.folder} is empty")
    return by_name[split]


def _rows(task: Task, table: Table, places: Sequence[int], origin: str, cap: int | None) -> list[Row]:
    if not places:
        raise InputError(
            f"{origin}: no rows to use; {task.folder} needs some in every split, and this one is too small to be split"
        )
    if cap is not None and cap < len(places):
        places = sorted(Random(SPLIT_SEED).sample(list(places), cap))
    rows = table.take(places)
    check_rows(task, rows, places, origin)
    return rows
