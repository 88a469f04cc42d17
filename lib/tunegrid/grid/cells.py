"""Makes `Cell`s at a `Profile` of backbones, tasks, methods and recipes.

The grid is sparse: a cell exists where there is a recipe for its backbone, task and method. The study's 27 are one declared
set (`study`); users add to it with `pytest_tunegrid_grid`.
"""

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.errors import InputError, first_line
from tunegrid.grid.backbones import BACKBONES, HEAD_EXCEPTIONS, LAYOUTS, Backbone, Head, complete_head
from tunegrid.grid.methods import METHODS, OPTIMIZERS, Method, OptimizerFactory, Quantization
from tunegrid.grid.metrics import Metric
from tunegrid.grid.recipes import QUICK, RECIPES, WITHOUT_EXCEPTION, Fields, Profile, Recipe, quick_changes
from tunegrid.grid.tasks import TASKS, Problem, Task

OWN_FOLDERS = ("lib", "fixtures", "benchmarks")
NAME = re.compile(r"[a-z0-9]+")  # an id is a part of a cell's id, which underscores divide
LISTS = "`tunegrid run -m full --list-cells` lists them; -m 'full and larger' and 'full and tasks' list others"
# Updates of a quick cell on a user's rows. Nine cells on 2,200 tickets of four labels learned in 150 updates at two seeds; 100
# for each label leave room.
LABEL_UPDATES = 100  # at least, for each label
MOST_UPDATES = 600  # half a minute on one core
STUDY_TASKS = {Problem.CLASSIFY: "sa", Problem.EXTRACT: "qa", Problem.GENERATE: "sum"}
# Heaviest problems first, so that parallel workers do not end on a long cell.
ORDER = (Problem.GENERATE, Problem.EXTRACT, Problem.CLASSIFY)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One backbone fine-tuned on one task with one method, at one profile.

    Attributes:
        recipe: how it trains here, the profile's changes included.
        head: what stands on the backbone.
        optimizers: those that recipes may name.
    """

    backbone: Backbone
    task: Task
    method: Method
    recipe: Recipe
    head: Head
    optimizers: Mapping[str, OptimizerFactory]
    profile: Profile

    @property
    def id(self) -> str:
        """The study's name, as in `bert_sa_lora`."""
        return f"{self.backbone.id}_{self.task.id}_{self.method.id}"

    @property
    def name(self) -> str:
        """Its id and its seed."""
        return f"{self.id}-seed{self.profile.seed}"

    @property
    def optimizer(self) -> OptimizerFactory:
        """Makes the recipe's optimizer."""
        return self.optimizers[self.recipe.optim]

    @property
    def quantization(self) -> Quantization | None:
        """How the base is stored."""
        return self.method.quantization

    @property
    def uses_hub(self) -> bool:
        """Whether the hub is asked for the rows."""
        return not (self.profile.data_root or self.profile.random_weights or self.task.has_own_rows)

    @property
    def new_parts(self) -> str:
        """A sentence on pretrained modules that its checkpoint lacks; empty if it has all."""
        modules = " and ".join(self.head.renewed_modules)
        return modules and f"the checkpoint has no {modules}: it starts from random and trains in full"

    @property
    def text(self) -> tuple[str, ...]:
        """The columns that are read as the first text."""
        return self.recipe.text or self.task.text


@dataclass(kw_only=True)
class Grid:
    """What may be combined, and the recipes that say which combinations exist.

    Attributes:
        recipes: by cell id; `quick` are the fields that make them quick ones, for cells that have a micro backbone.
        heads: of cells whose head is not the backbone's own.
        shifts: changes of rows that `--ask=robustness` scores on, beside the suite's own.
        instruments: more questions to a trained cell for `--ask`, beside the suite's own.
        refused: reasons against cells that their libraries cannot train, by cell id.
        remarks: doubts about cells that can be trained, by cell id; `--list-cells` prints them.
        folder: of the `--grid` file that is adding to it, where relative files of tasks are.
    """

    backbones: dict[str, Backbone] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    optimizers: dict[str, OptimizerFactory] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    quick: dict[str, Fields] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    shifts: dict[str, Any] = field(default_factory=dict)
    instruments: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def add_backbone(self, backbone: Backbone, **copies: Any) -> None:
        """A backbone; `like=` another one, it gets copies of that one's recipes, whose fields keyword arguments change.

        `quick={...}` changes their quick form. Raises InputError for a known name, and for a field that no recipe has.
        """
        self._add_like(0, backbone, **copies)

    def add_task(self, task: Task, **copies: Any) -> None:
        """A task, as `add_backbone` adds a backbone. Copies read the new task's `text`.

        They have a quick form if the task has files of its own: the micro rows are those of the study's tasks.
        It makes the updates of `plan_updates`, unless `quick` gives `max_steps`.
        """
        self._add_like(1, task.with_files_in(self.folder), **copies)

    def add_method(self, method: Method, **copies: Any) -> None:
        """A method, as `add_backbone` adds a backbone."""
        self._add_like(2, method, **copies)

    def add_optimizer(self, name: str, make: OptimizerFactory) -> None:
        """An optimizer under the name that `Recipe.optim` and `--set optim=NAME` take. Raises InputError for a known name."""
        if name in self.optimizers:
            raise InputError(f"optimizer {name!r} is in the grid already; give yours another name")
        self.optimizers[name] = make

    def add_shift(self, shift: Any) -> None:
        """A `tunegrid.instruments.Shift` for robustness; `--ask` refuses names of ours. Raises InputError for a known name."""
        _add(self.shifts, "shift", shift)

    def add_instrument(self, instrument: Any) -> None:
        """A `tunegrid.instruments.Instrument` for `--ask`, which refuses names of ours. Raises InputError for a known name."""
        _add(self.instruments, "instrument", instrument)

    def add_metric(
        self,
        name: str,
        function: Any,
        *,
        task: str,
        worst: float = 0.0,
        best: float = 1.0,
        by_row: bool = False,
        main: bool = False,
    ) -> None:
        """A score of your own for a task of the grid; `main` makes it the main score.

        `tunegrid.grid.metrics.Metric` describes the other arguments. Raises InputError for an unknown
        task or a known name.
        """
        metric = Metric(name=name, function=function, worst=worst, best=best, by_row=by_row)
        scored = self.tasks.get(task)
        if scored is None:
            names = ", ".join(self.tasks)
            reason = f"the grid has no task {task!r}, but {names}; add the task first"
            raise InputError(f"{metric.place}: {reason}")
        self.tasks[task] = replace(
            scored,
            metrics=(*scored.metrics, metric),
            main_score=name if main else scored.main_score,
            bounded_scores=(*scored.bounded_scores, name),
        )

    def add_recipe(
        self,
        cell_id: str,
        recipe: Recipe | None = None,
        *,
        like: str | None = None,
        quick: Fields | None = None,
        head: Head | None = None,
        **changes: Any,
    ) -> None:
        """A cell's recipe, in place of one that stood there; with `quick` it runs with -m quick, too.

        `like` another cell, it is a copy of that cell's recipe, quick form and head, which `changes` and `quick` change.
        Raises InputError if the id names no backbone, task or method of the grid, and for a field that no recipe has.
        """
        self._parts(cell_id)
        if like is not None and recipe is None:
            self.checked_ids([like])
            self._copy(like, cell_id, changes, quick or {})
        elif like is None and isinstance(recipe, Recipe):
            self._set(cell_id, _change(cell_id, recipe, changes), self.quick.get(cell_id) if quick is None else quick)
        else:
            raise InputError(f"{cell_id}: give either a Recipe or like=CELL, whose recipe is copied")
        if head is not None:
            self.heads[cell_id] = head

    def _add_like(self, place: int, entry: Any, like: str | None = None, quick: Fields | None = None, **changes: Any) -> None:
        """An entry for one place of a cell's id, with copies of the recipes of `like`."""
        name, entries = entry.id, (self.backbones, self.tasks, self.methods)[place]
        _add(entries, ("backbone", "task", "method")[place], entry)
        if like is None:
            if fields := [*changes, *(quick or {})]:
                raise InputError(f"{name!r}: {', '.join(fields)} would change copied recipes; name their cell with like=")
            return
        sources = [parts for parts in (cell_id.split("_") for cell_id in self.recipes) if parts[place] == like]
        if not sources:
            reason = f"{repr(like)[:40]}, which has no recipes to copy"
            raise InputError(f"{name!r} cannot be like {reason}: the grid has {', '.join(entries)}")
        for parts in sources:
            self._copy("_".join(parts), "_".join([*parts[:place], name, *parts[place + 1 :]]), changes, quick or {})

    def _copy(self, old: str, new: str, changes: Fields, quick: Fields) -> None:
        """A cell's recipe, quick form and head for another cell, without the study's parameter counts.

        The study's exceptional heads, its heads' rates in the quick profile and columns of another task are not copied.
        """
        recipe, head, micro = self.recipes[old], self.heads.get(old), self.quick.get(old)
        plain_id = WITHOUT_EXCEPTION.get(old, old)
        if micro and old in QUICK and micro == quick_changes(old):  # its head's rate was found for that cell's micro backbone
            micro = {**micro, "learning_rate": QUICK[plain_id]["learning_rate"], "head_learning_rate": None}
        (_, task_before, _), (backbone, task, _) = self._parts(old), self._parts(new)
        self.heads.pop(new, None)  # of a cell that was there already
        if head is not None and head == HEAD_EXCEPTIONS.get(old):
            adapter, source = recipe.adapter, RECIPES[plain_id].adapter
            recipe = replace(recipe, adapter=adapter and source and replace(adapter, target_modules=source.target_modules))
        elif head is not None:
            self.heads[new] = head
        resets = {"trainable_params": None, "total_params": None} | ({} if task is task_before else {"text": ()})
        recipe = _change(new, recipe, {**resets, **changes})
        form: Fields | None = None
        if micro is not None and backbone.micro:
            if task is task_before:
                form = dict(micro) | dict(quick)
            elif task.has_own_rows:
                plan = {"min_steps": 0} if "max_steps" in quick else plan_updates(task, micro)
                form = dict(micro) | dict(plan) | dict(quick)
        self._set(new, recipe, form)
        if task.problem is not task_before.problem:
            self.remarks[new] = (
                f"task {task.id!r} is to {task.problem}, but its recipes are those of {task_before.id!r}, "
                f'to {task_before.problem}: write like="{STUDY_TASKS[task.problem]}"'
            )

    def _set(self, cell_id: str, recipe: Recipe, quick: Fields | None) -> None:
        """A recipe and its quick form, in place of those that stood there."""
        self.recipes[cell_id] = recipe
        self.quick.pop(cell_id, None)
        self.remarks.pop(cell_id, None)
        if quick is not None:
            _change(cell_id, recipe, quick)
            self.quick[cell_id] = quick

    def ids(self, profile: Profile) -> tuple[str, ...]:
        """The cells that exist at a profile, heaviest problems first."""
        return tuple(cell_id for cell_id, reason in self._reasons(profile).items() if reason is None)

    def unsupported(self, profile: Profile) -> dict[str, str]:
        """The cells that have a recipe but cannot be built, with the reason of each."""
        return {cell_id: reason for cell_id, reason in self._reasons(profile).items() if reason is not None}

    def _reasons(self, profile: Profile) -> dict[str, str | None]:
        """`build_fault` each cell that has a recipe at a profile: by task, then backbone, then method."""
        existing = self.quick if profile.micro else self.recipes
        tasks = sorted(reversed(self.tasks.values()), key=lambda task: ORDER.index(task.problem))
        parts = product(tasks, self.backbones.values(), self.methods.values())
        ids = (f"{backbone.id}_{task.id}_{method.id}" for task, backbone, method in parts)
        return {cell_id: self.build_fault(cell_id) for cell_id in ids if cell_id in existing}

    def build_fault(self, cell_id: str) -> str | None:
        """Why a cell cannot be built, whatever its recipe; None if it can."""
        backbone, task, method = self._parts(cell_id)
        if cell_id in self.refused:
            return self.refused[cell_id]
        head = self.heads.get(cell_id) or backbone.heads.get(task.problem)
        if head is None:
            return f"backbone {backbone.id!r} declares no head for {task.problem}, which task {task.id!r} needs"
        if head.layout not in LAYOUTS[task.problem]:
            layouts = ", ".join(f"Layout.{layout.name}" if layout else "none" for layout in LAYOUTS[task.problem])
            return f"a head of layout {head.layout or 'none'} cannot {task.problem}; its layout must be one of {layouts}"
        return method.unsupported(head)

    def cells(self, profile: Profile) -> tuple[Cell, ...]:
        """Every cell at a profile, in the order of `ids`."""
        return tuple(self.cell(cell_id, profile) for cell_id in self.ids(profile))

    def cell(self, cell_id: str, profile: Profile) -> Cell:
        """One cell; raises InputError if it does not exist, or its recipe cannot be followed, with the reason."""
        self.checked_ids([cell_id])
        backbone, task, method = self._parts(cell_id)
        recipe = profile.adjust_recipe(cell_id, self.recipes[cell_id], self.quick.get(cell_id))
        try:
            if unknown_columns := [column for column in recipe.text if column not in task.columns]:
                hint = f"{', '.join(task.columns)}; write text=() for what the task reads ({', '.join(task.text)})"
                raise InputError(f"the recipe reads column {unknown_columns[0]!r}, but task {task.id!r} has {hint}")
            if recipe.optim not in self.optimizers:
                raise InputError(f"unknown optimizer {recipe.optim!r}; choose from {', '.join(sorted(self.optimizers))}")
            method.check(recipe)
        except InputError as error:
            raise InputError(f"{cell_id}: {error}") from None
        head = complete_head(self.heads.get(cell_id) or backbone.heads[task.problem], backbone, profile)
        return Cell(
            backbone=backbone, task=task, method=method, recipe=recipe, head=head, optimizers=self.optimizers, profile=profile
        )

    def _parts(self, cell_id: str) -> tuple[Backbone, Task, Method]:
        try:
            backbone, task, method = cell_id.split("_")
            return self.backbones[backbone], self.tasks[task], self.methods[method]
        except (KeyError, ValueError):
            matches = get_close_matches(cell_id, [*self.recipes], n=1)
            raise InputError(f"unknown cell {cell_id!r}{f'; did you mean {matches[0]}?' if matches else ';'} {LISTS}") from None

    def checked_ids(self, cell_ids: Iterable[str]) -> tuple[str, ...]:
        """The same ids; raises InputError for one that has no recipe or cannot be built, with the reason."""
        cell_ids = tuple(cell_ids)
        for cell_id in cell_ids:
            reason = self.build_fault(cell_id)
            if cell_id not in self.recipes:
                raise InputError(f"{cell_id} has no recipe, so it does not exist; a --grid file adds one with grid.add_recipe")
            if reason:
                raise InputError(f"{cell_id}: {reason}")
        return cell_ids


def _add(entries: dict[str, Any], kind: str, entry: Any) -> None:
    """Raises InputError for a name that a cell's id cannot hold, and for a known one."""
    if not NAME.fullmatch(entry.id):
        expected = "expected lower-case letters and digits, since underscores divide a cell's id"
        raise InputError(f"invalid id of {kind} {entry.id!r}: {expected}")
    if entry.id in entries:
        raise InputError(f"{kind} {entry.id!r} is in the grid already; give yours another id")
    entries[entry.id] = entry


def plan_updates(task: Task, copied: Fields) -> Fields:
    """The updates of a quick recipe copied for another task: one pass over its rows, within limits.

    The copied recipe's are too few: its micro backbone was pretrained on rows like its own.
    """
    copied_updates = copied.get("min_steps") or copied.get("max_steps", 0)
    fewest = max(copied_updates, LABEL_UPDATES * len(task.labels))
    return {"min_steps": min(fewest, MOST_UPDATES), "max_steps": MOST_UPDATES}


def _change(cell_id: str, recipe: Recipe, changes: Fields) -> Recipe:
    try:
        return replace(recipe, **changes)
    except TypeError:
        unknown_fields = sorted(set(changes) - set(vars(recipe)))
        raise InputError(f"{cell_id}: a recipe has no field {unknown_fields[0]!r}") from None


def study() -> Grid:
    """The grid of the study: 27 cells."""
    return Grid(
        backbones={backbone.id: backbone for backbone in BACKBONES},
        tasks={task.id: task for task in TASKS},
        methods={method.id: method for method in METHODS},
        optimizers=dict(OPTIMIZERS),
        recipes=dict(RECIPES),
        quick={cell_id: quick_changes(cell_id) for cell_id in QUICK},
        heads=dict(HEAD_EXCEPTIONS),
    )


STUDY = study()
STUDY_IDS = STUDY.ids(Profile(id="full"))
# A third of the study's cells, in which every two of backbone, task and method meet once.
SMOKE = (
    *("bert_sa_lora", "bert_qa_qlora", "bert_sum_sft", "gpt2_sa_qlora", "gpt2_qa_sft", "gpt2_sum_lora"),
    *("t5_sa_sft", "t5_qa_lora", "t5_sum_qlora"),
)
PLACES = [list(dict.fromkeys(parts)) for parts in zip(*(cell_id.split("_") for cell_id in STUDY_IDS), strict=True)]


def study_place(cell_id: str) -> tuple[tuple[int, str], ...]:
    """Sorts cells as the study has them: by task, backbone and method; what it does not have comes last, by name."""
    parts = [*cell_id.split("_", 2), "", ""][:3]  # a file may call a cell anything
    places = [(names.index(part) if part in names else len(names), part) for names, part in zip(PLACES, parts, strict=True)]
    return places[1], places[0], places[2]


def add_file(path: Path, grid: Grid) -> None:
    """Let a user's file add its entries; raises InputError, with its name and line, where it cannot be read or run."""
    name = f"tunegrid_grid_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"--grid {path} is not a Python file")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    # Its own neighbours are what it imports, also those that have the name of a folder of the suite.
    modules, places = {key: sys.modules.pop(key) for key in [*sys.modules] if key.partition(".")[0] in OWN_FOLDERS}, sys.path[:]
    sys.path[:] = [str(path.parent), *(place for place in places if place != str(ROOT))]
    try:
        spec.loader.exec_module(module)
        if hook := getattr(module, "pytest_tunegrid_grid", None):
            grid.folder = path.resolve().parent
            hook(grid)
    except InputError as error:
        raise InputError(f"--grid {path}: {error}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may also end the program, or skip as a test does
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        location = f"{path}, line {line}" if line else str(path)
        raise InputError(f"--grid {location}: {type(error).__name__}: {first_line(error)}") from None
    finally:
        grid.folder = None
        for key in [key for key in sys.modules if key.partition(".")[0] in OWN_FOLDERS]:
            del sys.modules[key]
        sys.modules.update(modules)
        sys.path[:] = [*places, *(place for place in sys.path if place not in places)]  # for what it imports later
    if hook is None:
        raise InputError(f"--grid {path} has no function pytest_tunegrid_grid(grid), which adds to the grid")
