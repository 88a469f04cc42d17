"""Controls: a run that cannot have learned its task must miss a bound, in every cell. If one passes, the bound is blunt.

So must a run whose adapter is taken away after training while its head stays (`adapter_off`): the head alone must not do.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from torch import nn

from benchmarks.plants.plant import Plant
from benchmarks.plants.study import with_other
from tunegrid.data.splits import Splits
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.more_tasks import belongs_to, more_tasks
from tunegrid.grid.recipes import QUICK_PROFILE, TASKS_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo

Rows = list[dict[str, Any]]


def random_weights(cell: Cell, folder: Path) -> Cell:
    """The backbone is built from scratch."""
    from tunegrid.lab.micro.pretrain import pretrain

    root = folder.parent / "untrained"  # pytest's, of all tests of this process: a backbone takes seconds
    if not (root / cell.backbone.micro).is_dir():
        pretrain(cell.backbone.id, root / cell.backbone.micro, steps=0, log=lambda line: None)
    return replace(cell, profile=replace(cell.profile, checkpoint_root=root))


def targets_dealt_out(splits: Splits, folder: Path) -> Splits:
    """Training rows have targets that have nothing to do with their inputs."""
    task = next(task for task in SHUFFLES if task in splits.train[0])
    return replace(splits, train=SHUFFLES[task](splits.train, Random(0)))


def dealt_out(column: str) -> Callable[[Rows, Random], Rows]:
    """A column's values, dealt out again among the rows."""

    def shuffle(rows: Rows, rng: Random) -> Rows:
        values = rng.sample([row[column] for row in rows], len(rows))
        return [row | {column: value} for row, value in zip(rows, values, strict=True)]

    return shuffle


def other_words(rows: Rows, rng: Random) -> Rows:
    """Of each context another word than the answer."""

    def word(context: str) -> dict[str, Any]:
        words = context.split()
        index = rng.randrange(len(words))
        return {"text": [words[index]], "answer_start": [len(" ".join(words[:index])) + bool(index)]}

    return [row | {"answers": word(row["context"])} for row in rows]


SHUFFLES: Mapping[str, Callable[[Rows, Random], Rows]] = {
    "label": dealt_out("label"),
    "answers": other_words,
    "highlights": dealt_out("highlights"),
}


def adapter_off(model: nn.Module, start: Mapping[str, Any]) -> None:
    """The adapter goes back to where it started, under the head as it was trained."""
    model.load_state_dict(start, strict=False)


CAUSES: Mapping[str, tuple[str, str, Callable[..., Any]]] = {
    "random_weights": ("a backbone with random weights", "built_cell", random_weights),
    "learning_rate_0": ("updates that move nothing", "cell", with_other("recipe", learning_rate=0.0, head_learning_rate=None)),
    "shuffled_labels": ("targets dealt out anew", "splits", targets_dealt_out),
    "adapter_off": ("the adapter taken away after training", "trained", adapter_off),
}


def controls(profile: str, cells: Iterable[Cell], causes: Iterable[str]) -> Iterable[Plant]:
    """Each cause in each cell; what has no adapter cannot lose it."""
    for cause in causes:
        what, noun, broken_by = CAUSES[cause]
        for cell in cells:
            if cause != "adapter_off" or cell.method.adapts:
                yield Plant(cause, what, "classic", cell.id, broken_by, "bound", breaks=noun, profile=profile)


TASKS = [cell for cell in more_tasks().cells(TASKS_PROFILE) if belongs_to("tasks", cell.id)]
CONTROLS = (
    *controls("quick", STUDY.cells(QUICK_PROFILE), CAUSES),
    *controls("zoo", zoo().cells(ZOO_PROFILE), [cause for cause in CAUSES if cause != "random_weights"]),
    *controls("tasks", TASKS, CAUSES),
)
