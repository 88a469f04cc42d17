"""Makes transformers' schedule of the learning rate for a cell's recipe and number of updates."""

import math
from typing import Any

import transformers as hf

from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell

SCHEDULES = tuple(kind.value for kind in hf.SchedulerType)


def make_schedule(optimizer: Any, cell: Cell, updates: int) -> Any:
    """The recipe's schedule, counted in updates. Raises InputError for an unknown one."""
    recipe = cell.recipe
    if recipe.lr_scheduler_type not in SCHEDULES:
        raise InputError(f"{cell.id}: unknown schedule {recipe.lr_scheduler_type!r}; known are {', '.join(sorted(SCHEDULES))}")
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * updates)
    return hf.get_scheduler(recipe.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=updates)
