"""Cells: the product of backbones, tasks and methods at one profile. In: a `Profile`. Out: 27 `Cell`s."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product

from lib.errors import InputError
from lib.grid.backbones import BACKBONES, HEAD_EXCEPTIONS, Backbone, Head
from lib.grid.methods import METHODS, Method, Quantization
from lib.grid.profiles import Profile
from lib.grid.recipes import Recipe
from lib.grid.tasks import TASKS, Task


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One backbone fine-tuned on one task with one method."""

    backbone: Backbone
    task: Task
    method: Method
    profile: Profile

    def __post_init__(self) -> None:
        """Raises ValueError where method and recipe disagree on adapters."""
        if self.method.adapts != (self.recipe.adapter is not None):
            raise ValueError(f"{self.id}: method {self.method.id} and the recipe's adapter {self.recipe.adapter} disagree")

    @property
    def id(self) -> str:
        """The study's name, as in `bert_sa_lora`."""
        return f"{self.backbone.id}_{self.task.id}_{self.method.id}"

    @property
    def recipe(self) -> Recipe:
        """How this cell trains at this profile."""
        return self.profile.recipe(self.id)

    @property
    def head(self) -> Head:
        """What stands on the backbone here."""
        return HEAD_EXCEPTIONS.get(self.id) or self.backbone.heads[self.task.problem]

    @property
    def quantization(self) -> Quantization | None:
        """How the base is stored."""
        return self.method.quantization


# Heaviest problems first, so that parallel workers do not end on a long cell.
CELL_IDS = tuple(f"{b.id}_{t.id}_{m.id}" for t, b, m in product(reversed(TASKS), BACKBONES, METHODS))


def grid(profile: Profile) -> tuple[Cell, ...]:
    """Every cell at one profile, in the order of `CELL_IDS`."""
    return tuple(
        Cell(backbone=backbone, task=task, method=method, profile=profile)
        for task, backbone, method in product(reversed(TASKS), BACKBONES, METHODS)
    )


def checked_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """The same ids; raises InputError for an unknown one, with the nearest known."""
    ids = tuple(ids)
    for name in ids:
        if name not in CELL_IDS:
            near = get_close_matches(name, CELL_IDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ";"
            raise InputError(f"unknown cell {name!r}{hint} `pytest --collect-only -q -m quick` lists all {len(CELL_IDS)}")
    return ids
