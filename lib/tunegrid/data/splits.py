"""Makes train, validation and test rows of a `Task` at a `Profile`: `Splits`, the same for every method and backbone.

A split's rows depend on the data and on `SPLIT_SEED` only, so that a triple's scores can be paired example by example.
"""

import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, NamedTuple

from tunegrid.data.rows import check_row, check_task, identity, noisy, text_hash, type_fault
from tunegrid.data.sources import Row, Table, check_split, tables
from tunegrid.errors import InputError
from tunegrid.grid.recipes import Profile
from tunegrid.grid.tasks import Carve, Task

SPLIT_SEED = 42  # the study's


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Rows to train on, to choose a checkpoint on, to score on.

    Attributes:
        origins: where each split came from.
        revision: the hub's commit that the rows were read at; None for a local folder.
        dropped: how many rows were left out of a split because the same text stands in one that scores it.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    origins: Mapping[str, str]
    revision: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all rows in order: equal rows, equal fingerprint."""
        digest, encode = hashlib.sha256(), json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
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


def load_splits(task: Task, profile: Profile) -> Splits:
    """Rows of all three splits, capped, checked and without copies; raises InputError for anything that cannot be used.

    A text that stands in test is dropped from train and validation, one that stands in validation from train.
    A share `profile.label_noise` of the training rows then gets a wrong target.
    With `profile.own_test`, a task that has an `own_test` split is scored on it; any other task keeps its own rule.
    """
    check_task(task)
    slices, columns = _slices(task, profile), task.identity or (*task.text, *task.context_columns)
    rows, dropped, scoring = dict[str, Sequence[Row]](), dict[str, int](), set[int]()
    for name in ("test", "validation", "train"):
        part, hashes = slices[name], array("Q")  # the texts themselves are not kept
        for index, row in zip(part.indices, part.table.take(part.indices), strict=True):
            check_row(task, row, index, part.table.origin)
            hashes.append(text_hash(identity(row, columns)))
        own = array("q", (index for index, text in zip(part.indices, hashes, strict=True) if text not in scoring))
        if not own:
            raise InputError(f"{part.origin}: no rows to use; each stands in a split that scores, too, so give other files")
        rows[name], dropped[name] = part.table.take(own), len(part.indices) - len(own)
        scoring.update(hashes)
    if profile.label_noise:
        rows["train"] = noisy(task, rows["train"], profile.label_noise)
    return Splits(
        **rows,
        origins={name: slices[name].origin for name in ("validation", "test", "train")},
        revision=slices["train"].table.revision,
        dropped={name: dropped[name] for name in ("validation", "train")},
    )


def _slices(task: Task, profile: Profile) -> dict[str, TableSlice]:
    """Where the rows of each split stand, as many as the profile takes."""
    by_name = tables(task, profile.data_root)
    train = _named(by_name, task.train, task)
    pool: Sequence[int] = range(len(train))
    slices: dict[str, TableSlice] = {}
    test = task.own_test if profile.own_test and task.own_test else task.test
    for name, rule in (("validation", task.validation), ("test", test)):
        if isinstance(rule, Carve):
            aside = carve(task, train, pool, rule)
            taken = frozenset(aside)
            pool = array("q", (index for index in pool if index not in taken))
            slices[name] = TableSlice(table=train, indices=aside, origin=f"{rule.share:.0%} of {train.origin}")
        else:
            table = _named(by_name, rule, task)
            slices[name] = TableSlice(table=table, indices=range(len(table)), origin=table.origin)
    slices["train"] = TableSlice(table=train, indices=pool, origin=train.origin)
    for name, part in slices.items():
        cap = profile.cap(task.id, name)
        if not part.indices:
            raise InputError(f"{part.origin}: no rows to use; each split of {task.folder} needs some, this one is too small")
        if cap is not None and cap < len(part.indices):
            slices[name] = part._replace(indices=array("q", sorted(Random(SPLIT_SEED).sample(part.indices, cap))))
    return slices


def carve(task: Task, table: Table, pool: Sequence[int], rule: Carve) -> Sequence[int]:
    """Places of the pool's rows to set aside: about `rule.share` of the whole table, drawn with `SPLIT_SEED`."""
    rng, column = Random(SPLIT_SEED), rule.stratify or rule.group
    values: Sequence[Any] = table.column(column) if column else [None] * len(table)
    if column:
        for index, value in enumerate(values):
            if not isinstance(value, task.columns[column]):
                raise InputError(f"{table.origin}, row {index}: {type_fault(task, column, value)}")
    if rule.group:
        groups = sorted({values[i] for i in pool})
        chosen = set(rng.sample(groups, max(1, round(rule.share * len(groups)))))
        return array("q", (i for i in pool if values[i] in chosen))
    strata: dict[Any, array[int]] = defaultdict(lambda: array("q"))
    for i in pool:
        strata[values[i]].append(i)
    sizes = Counter(values)
    drawn = (rng.sample(indices, round(rule.share * sizes[value])) for value, indices in sorted(strata.items()))
    return array("q", sorted(i for indices in drawn for i in indices))


def _named(by_name: Mapping[str, Table], split: str, task: Task) -> Table:
    check_split(by_name, split, task)
    if not len(by_name[split]):
        raise InputError(f"{by_name[split].origin}: no rows to use; split {split!r} of {task.folder} is empty")
    return by_name[split]
