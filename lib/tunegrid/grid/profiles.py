"""Profiles: at what size the grid runs. `full` is the study; `quick` the same on micro backbones, with recipes of its own."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.recipes import Fields, Recipe

FIXTURES = ROOT / "fixtures"
# Tokenised rows, journals, checkpoints, per-example scores: all of this machine, all can be deleted.
CACHE = Path(os.environ.get("TUNEGRID_CACHE") or ROOT / ".cache")


@dataclass(frozen=True, kw_only=True)
class Caps:
    """At most so many rows of each split; None takes all."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where text and checkpoints come from, and what replaces the study's values.

    Attributes:
        data_root, checkpoint_root: folders in place of the hub; None goes to the hub.
        micro: load `Backbone.micro` in place of the true checkpoint.
        random_weights: build the true checkpoint's shape without its weights, and take token ids without text.
        caps: rows by task id; `train_rows` and `eval_rows` (validation and test each) go before, and 0 there takes all.
        max_steps: updates of every cell, in place of the recipe's epochs; None leaves the recipe's.
        one_row: one row per update and short texts, where an update of the recipe's own size would take minutes.
        changes: recipe fields that the command line sets, for every cell; `adapter.r` is of a recipe that has an adapter.
        threads: torch threads a process; None shares the cores among the workers, and their ranks.
        ranks: processes that share one cell.
        fsdp: each of them holds a part of all weights while the cell trains.
        seed: of initialisation, dropout and the order of rows; the splits have a seed of their own.
        perturbation: the draw of noise that moves the start in its last digits, to measure what rounding does; None: none.
        label_noise: share of the training rows that get a wrong target.
        feature_cache: folder for tokenised rows; None tokenises every time.
    """

    id: str
    data_root: Path | None = None
    checkpoint_root: Path | None = None
    micro: bool = False
    random_weights: bool = False
    caps: Mapping[str, Caps] = field(default_factory=dict)
    max_steps: int | None = None
    one_row: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    ranks: int = 1
    fsdp: bool = False
    seed: int = 0
    perturbation: int | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    own_test: bool = False
    label_noise: float = 0.0
    device: str | None = None
    feature_cache: Path | None = None

    def cap(self, task_id: str, split: str) -> int | None:
        """At most so many rows of a split; None takes all."""
        own: int | None = self.train_rows if split == "train" else self.eval_rows
        return getattr(self.caps.get(task_id, Caps()), split) if own is None else own or None

    def adjusted(self, cell_id: str, recipe: Recipe, quick: Fields | None) -> Recipe:
        """A cell's recipe at this profile; `quick` are the fields that make it a quick one.

        With another adapter, other parameters train than the study counted. Another rate changes a head's own in proportion.
        Raises InputError where the profile is of micro backbones and the cell has no quick recipe.
        """
        if self.micro:
            if quick is None:
                raise InputError(f"{cell_id} has no quick recipe, so it runs with -m full and -m footprint only")
            recipe = replace(recipe, **quick)
        if self.max_steps is not None:
            recipe = replace(recipe, max_steps=self.max_steps, num_train_epochs=1)
        if self.one_row:
            short = recipe.generation and replace(recipe.generation, max_new_tokens=16, min_length=0)
            recipe = replace(recipe, per_device_train_batch_size=1, gradient_accumulation_steps=1, generation=short)
        values: dict[str, Any] = {}
        for name, value in self.changes.items():
            part, _, inner = name.partition(".")
            whole = values.get(part, getattr(recipe, part))
            if not inner:
                values[name] = value
            elif whole is not None:  # of an adapter or a search, if the recipe has one
                values[part] = replace(whole, **{inner: value})
        if "adapter" in values:
            values |= {"trainable_params": None, "total_params": None}
        if "learning_rate" in values and recipe.head_learning_rate is not None:
            rate = recipe.head_learning_rate * values["learning_rate"] / recipe.learning_rate
            values = {"head_learning_rate": rate, **values}
        return replace(recipe, **values)


# What `-m full` reads of each data set, so that the 27 cells take about a day on one H100; `--set train_rows=0` reads all.
# Reckoned, not measured: at these sizes an update is bound by launching kernels, some 30 ms a micro-batch (80 ms for
# BERT2BERT), and generating takes some 30 ms a token of a batch of 64.
#   sa   100,000 of 2.5 M rows, 3 to 5 epochs: 9,400 to 31,000 micro-batches, 5 to 16 min a cell; accuracy is flat long before.
#        20,000 of 540,000 test rows: a standard error of 0.15 points at 95 %.
#   qa   all 79,000 rows (GPT-2 in batches of 2: 120,000 micro-batches, 60 min a cell) and all 10,570 test rows.
#   nli  100,000 of 373,000 rows, 3 to 5 epochs: 15,600 to 37,500 micro-batches, 8 to 19 min a cell; all 9,815 test rows.
#   sum  50,000 of 287,113 rows, 1 to 3 epochs: 6,250 to 150,000 micro-batches, 5 to 75 min a cell; generating for the
#        2,000 test rows takes 2 min (all 11,490: 12 min), a standard error of about 0.25 points of ROUGE-1.
# Validation chooses among epochs only, so a few rows do.
FULL_CAPS: Mapping[str, Caps] = {
    "sa": Caps(train=100_000, validation=5_000, test=20_000),
    "qa": Caps(validation=2_000),
    "nli": Caps(train=100_000, validation=5_000),
    "sum": Caps(train=50_000, validation=500, test=2_000),
}

FULL_PROFILE = Profile(id="full", caps=FULL_CAPS, feature_cache=CACHE / "features")
# Two updates are traced and a third warms up; twenty are measured (ten on a CPU).
FOOTPRINT_PROFILE = Profile(id="footprint", random_weights=True, max_steps=23)
FOOTPRINT_CPU_PROFILE = replace(FOOTPRINT_PROFILE, device="cpu", max_steps=13, one_row=True)
QUICK_PROFILE = Profile(
    id="quick",
    data_root=FIXTURES / "data",
    checkpoint_root=FIXTURES / "backbones",
    micro=True,
    threads=1,  # one thread or two change rounding, hence scores; workers use the other cores
    device="cpu",  # the same scores on a machine with a GPU
)
ZOO_PROFILE = replace(QUICK_PROFILE, id="zoo")  # cells of `tunegrid.grid.zoo`
TASKS_PROFILE = replace(QUICK_PROFILE, id="tasks")  # cells of more tasks than the study's: `tunegrid.grid.more_tasks`
# Profiles whose cells share a machine's cores, and those whose cells train on text and are scored.
MICRO = tuple(profile.id for profile in (QUICK_PROFILE, ZOO_PROFILE, TASKS_PROFILE))
SCORED = (*MICRO, FULL_PROFILE.id)
AT_TRUE_SIZE = frozenset({FULL_PROFILE.id, FOOTPRINT_PROFILE.id})
# The libraries' own path takes a few updates on a few rows, of whatever size the backbone is.
STOCK_PROFILE = replace(QUICK_PROFILE, id="stock")
STOCK_FULL_PROFILE = Profile(
    id="stock", caps=dict.fromkeys(FULL_CAPS, Caps(train=400, validation=10, test=10)), feature_cache=CACHE / "features"
)
