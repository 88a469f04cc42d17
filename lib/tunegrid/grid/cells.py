"""Builds `Cell`s for a `Profile` from backbones, tasks, methods and recipes.

The grid is sparse: only a combination of backbone, task and method that has a recipe is a cell.
`study` declares the study's 27 cells; users add more in the hook `pytest_tunegrid_grid`.
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
from tunegrid.grid.backbones import BACKBONES, BERT_MLP, LAYOUTS, Backbone, Head, complete_head
from tunegrid.grid.methods import METHODS, OPTIMIZERS, Method, OptimizerFactory, Quantization
from tunegrid.grid.metrics import Metric
from tunegrid.grid.recipes import QUICK, RECIPES, Fields, Profile, Recipe, quick_changes
from tunegrid.grid.tasks import TASKS, Problem, Task

OWN_FOLDERS = ("lib", "fixtures", "benchmarks")
NAME = re.compile(r"[a-z0-9]+")  # an id is part of a cell's id, which underscores separate
# Updates of a quick cell on a user's rows. On 2,200 tickets with four labels, nine cells learned
# within 150 updates at two seeds; 100 updates per label leave a margin.
LABEL_UPDATES = 100  # minimum per label
MOST_UPDATES = 600  # take half a minute on one core
STUDY_TASKS = {Problem.CLASSIFY: "sa", Problem.EXTRACT: "qa", Problem.GENERATE: "sum"}
# Heaviest problems first, so that parallel workers do not finish with a long cell.
ORDER = (Problem.GENERATE, Problem.EXTRACT, Problem.CLASSIFY)
# Heads of the study's cells that differ from the backbone's own.
HEADS: Mapping[str, Head] = {"bert_sa_lora": BERT_MLP}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A backbone fine-tuned on a task with a method, under a profile.

    Attributes:
        recipe: how the cell trains, including the profile's changes.
        head: the backbone's output layers.
        optimizers: the functions that make optimizers, by the names that recipes use.
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
        """The ids of backbone, task and method, as in `bert_sa_lora`."""
        return f"{self.backbone.id}_{self.task.id}_{self.method.id}"

    @property
    def name(self) -> str:
        """The cell's id and seed, as in `bert_sa_lora-seed0`."""
        return f"{self.id}-seed{self.profile.seed}"

    @property
    def optimizer(self) -> OptimizerFactory:
        """The function that makes the recipe's optimizer."""
        return self.optimizers[self.recipe.optim]

    @property
    def quantization(self) -> Quantization | None:
        """The quantization of the base; None if it is not quantized."""
        return self.method.quantization

    @property
    def uses_hub(self) -> bool:
        """True if the cell's rows come from the hub."""
        return not (self.profile.data_root or self.profile.random_weights or self.task.has_own_rows)

    @property
    def new_parts(self) -> str:
        """A sentence naming the renewable modules that the checkpoint lacks; empty if none."""
        modules = " and ".join(self.head.renewed_modules)
        if not modules:
            return ""
        return f"the checkpoint has no {modules}: it is initialized at random and trained in full"

    @property
    def text(self) -> tuple[str, ...]:
        """The columns that form the first text."""
        return self.recipe.text or self.task.text


@dataclass(kw_only=True)
class Grid:
    """Backbones, tasks and methods, and the recipes that decide which combinations exist.

    Attributes:
        recipes: the recipe of each cell, by cell id.
        quick: the fields that a quick run changes in a cell's recipe, by cell id.
        heads: heads that replace the backbone's default head, by cell id.
        shifts: changes to rows for `--ask=robustness`, in addition to the suite's own.
        instruments: measurements for `--ask`, in addition to the suite's own.
        refused: the reason why the grid leaves out a cell, by cell id.
        remarks: caveats about cells that can be trained, by cell id; `--list-cells` prints them.
        missing_files: by task id, an error message for each task that has no quick cells because
            none of its files is beside the `--grid` file.
        folder: the folder of the `--grid` file that is being run; relative paths in its tasks are
            resolved against it.
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
    missing_files: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def add_backbone(self, backbone: Backbone, **copies: Any) -> None:
        """Adds a backbone; `like=ID` copies the recipes of another backbone for it.

        Other keyword arguments set fields of the copied recipes; `quick={...}` sets fields that
        apply in quick runs only. Raises InputError if the id is invalid or taken, or if a field is
        unknown.
        """
        self._add_like(0, backbone, **copies)

    def add_task(self, task: Task, **copies: Any) -> None:
        """Adds a task, as `add_backbone` adds a backbone.

        Copied recipes read the new task's `text`. They have a quick form only if the task has its
        own files, since the micro rows belong to the study's tasks. The quick form's number of
        updates comes from `plan_updates`, unless `quick` sets `max_steps`.
        """
        task = task.with_files_in(self.folder)
        if task.files and not task.has_own_rows:
            names = ", ".join(map(str, task.files.values()))
            fault = f"none of its files ({names}) is beside the --grid file"
            if self.folder:  # a plugin's tasks have none
                fault += f", in {self.folder}"
            hint = f"if they are in DIR/{task.folder}, write -m full --data-root=DIR"
            self.missing_files[task.id] = (
                f"task {task.id!r}: {fault}; correct their names, or, {hint}"
            )
        self._add_like(1, task, **copies)

    def add_method(self, method: Method, **copies: Any) -> None:
        """Adds a method, as `add_backbone` adds a backbone."""
        self._add_like(2, method, **copies)

    def add_optimizer(self, name: str, make: OptimizerFactory) -> None:
        """Adds an optimizer under the name that `Recipe.optim` and `--set optim=NAME` use.

        Raises InputError if the name is taken.
        """
        if name in self.optimizers:
            raise InputError(f"optimizer {name!r} is in the grid already; give yours another name")
        self.optimizers[name] = make

    def add_shift(self, shift: Any) -> None:
        """Adds a `tunegrid.instruments.Shift` for `--ask=robustness`.

        Raises InputError if its id is invalid or taken.
        """
        _add(self.shifts, "shift", shift)

    def add_instrument(self, instrument: Any) -> None:
        """Adds a `tunegrid.instruments.Instrument`.

        Raises InputError if its id is invalid or taken.
        """
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
        """Adds a user's score to a task of the grid; `main` makes it the main score.

        `tunegrid.grid.metrics.Metric` describes the other arguments. Raises InputError if
        the task is unknown or an argument is invalid.
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
        """Adds or replaces a cell's recipe; with `quick`, the cell also runs with -m quick.

        `like` names another cell, whose recipe, quick form and head are copied; `changes` and
        `quick` then set fields of the copies. Raises InputError if the grid lacks the backbone,
        task or method in the id, or if a field is unknown.
        """
        self._parts(cell_id)
        if like is not None and recipe is None:
            self.checked_ids([like])
            self._copy(like, cell_id, changes, quick or {})
        elif like is None and isinstance(recipe, Recipe):
            form = self.quick.get(cell_id) if quick is None else quick
            self._set(cell_id, _change(cell_id, recipe, changes), form)
        else:
            choices = "give either a Recipe or like=CELL, whose recipe is copied"
            raise InputError(f"{cell_id}: {choices}")
        if head is not None:
            self.heads[cell_id] = head

    def _add_like(
        self,
        position: int,
        entry: Any,
        like: str | None = None,
        quick: Fields | None = None,
        **changes: Any,
    ) -> None:
        """Adds a backbone, task or method (`position` 0, 1 or 2) and copies the recipes of `like`.

        Raises InputError as `add_backbone` does.
        """
        entries = (self.backbones, self.tasks, self.methods)[position]
        _add(entries, ("backbone", "task", "method")[position], entry)
        quick = quick or {}
        if like is None:
            fields = ", ".join([*changes, *quick])
            if fields:
                reason = f"{fields} would change copied recipes"
                raise InputError(f"{entry.id!r}: {reason}; name their cell with like=")
            return
        sources = [cell_id for cell_id in self.recipes if cell_id.split("_")[position] == like]
        if not sources:
            reason = f"{repr(like)[:40]}, which has no recipes to copy"
            names = ", ".join(entries)
            raise InputError(f"{entry.id!r} cannot be like {reason}: the grid has {names}")
        for source in sources:
            entry_ids = source.split("_")
            entry_ids[position] = entry.id
            self._copy(source, "_".join(entry_ids), changes, quick)

    def _copy(self, source: str, cell_id: str, changes: Fields, quick: Fields) -> None:
        """Copies a cell's recipe, quick form and head to another cell.

        Does not copy parameter counts, a head with `copied_as`, or, if the tasks differ, the `text`
        columns.
        """
        recipe = self.recipes[source]
        head = self.heads.get(source)
        source_task = self._parts(source)[1]
        task = self._parts(cell_id)[1]
        form = self._copied_quick(source, cell_id, quick)
        self.heads.pop(cell_id, None)  # drops the head of a cell that is replaced
        if head is not None and head.copied_as is None:
            self.heads[cell_id] = head
        elif head is not None and recipe.adapter:
            adapter = replace(recipe.adapter, target_modules=plain_targets(head))
            recipe = replace(recipe, adapter=adapter)
        recipe = replace(recipe, trainable_params=None, total_params=None)
        if task is not source_task:
            recipe = replace(recipe, text=())
        self._set(cell_id, _change(cell_id, recipe, changes), form)
        if task.problem is not source_task.problem:
            self.remarks[cell_id] = (
                f"task {task.id!r} is to {task.problem}, "
                f"but its recipes are those of {source_task.id!r}, to {source_task.problem}: "
                f'write like="{STUDY_TASKS[task.problem]}"'
            )

    def _copied_quick(self, source: str, cell_id: str, changes: Fields) -> Fields | None:
        """A cell's quick form, adapted to a new cell.

        Returns None if the cell has no quick form, if the new cell's backbone has no micro
        checkpoint, or if its task differs and has no rows of its own.
        """
        form = self.quick.get(source)
        backbone, task, _ = self._parts(cell_id)
        if form is None or not backbone.micro:
            return None
        form = dict(form)
        if source in QUICK and form == quick_changes(source):
            # A head's rate was tuned for the source cell's micro backbone, and the rate of a cell
            # with its own head was tuned for that head.
            head = HEADS.get(source)
            plain_id = (head and head.copied_as) or source
            form["learning_rate"] = QUICK[plain_id]["learning_rate"]
            form["head_learning_rate"] = None
        if task is not self._parts(source)[1]:
            if not task.has_own_rows:
                return None
            if "max_steps" in changes:
                form["min_steps"] = 0
            else:
                form |= plan_updates(task, form)
        return form | dict(changes)

    def _set(self, cell_id: str, recipe: Recipe, quick: Fields | None) -> None:
        """Sets a cell's recipe and quick form, replacing earlier ones."""
        self.recipes[cell_id] = recipe
        self.quick.pop(cell_id, None)
        self.remarks.pop(cell_id, None)
        if quick is not None:
            _change(cell_id, recipe, quick)
            self.quick[cell_id] = quick

    def ids(self, profile: Profile) -> tuple[str, ...]:
        """Ids of the cells that can be built under a profile, heaviest problems first."""
        reasons = self._reasons(profile)
        return tuple(cell_id for cell_id, reason in reasons.items() if reason is None)

    def unsupported(self, profile: Profile) -> dict[str, str]:
        """The reasons why cells that have recipes cannot be built, by cell id."""
        reasons = self._reasons(profile)
        return {cell_id: reason for cell_id, reason in reasons.items() if reason is not None}

    def _reasons(self, profile: Profile) -> dict[str, str | None]:
        """The `build_fault` of each cell of a profile, sorted by task, backbone and method."""
        existing = self.quick if profile.micro else self.recipes
        reasons = {}
        tasks = sorted(reversed(self.tasks.values()), key=lambda task: ORDER.index(task.problem))
        for task, backbone, method in product(tasks, self.backbones, self.methods):
            cell_id = f"{backbone}_{task.id}_{method}"
            if cell_id in existing:
                reasons[cell_id] = self.build_fault(cell_id)
        return reasons

    def build_fault(self, cell_id: str) -> str | None:
        """The reason why a cell cannot be built, whatever its recipe; None if it can."""
        backbone, task, method = self._parts(cell_id)
        if cell_id in self.refused:
            return self.refused[cell_id]
        head = self.heads.get(cell_id) or backbone.heads.get(task.problem)
        if head is None:
            lack = f"backbone {backbone.id!r} declares no head for {task.problem}"
            return f"{lack}, which task {task.id!r} needs"
        layouts = LAYOUTS[task.problem]
        if head.layout not in layouts:
            fault = f"a head of layout {head.layout or 'none'} cannot {task.problem}"
            names = [f"Layout.{layout.name}" if layout else "none" for layout in layouts]
            return f"{fault}; its layout must be one of {', '.join(names)}"
        return method.unsupported(head)

    def cells(self, profile: Profile) -> tuple[Cell, ...]:
        """All cells of a profile, in the order of `ids`."""
        return tuple(self.cell(cell_id, profile) for cell_id in self.ids(profile))

    def cell(self, cell_id: str, profile: Profile) -> Cell:
        """Builds a cell; raises InputError if it cannot be built or its recipe is unusable."""
        self.checked_ids([cell_id])
        backbone, task, method = self._parts(cell_id)
        if profile.micro and cell_id not in self.quick and task.id in self.missing_files:
            raise InputError(self.missing_files[task.id])
        recipe = profile.adjust_recipe(cell_id, self.recipes[cell_id], self.quick.get(cell_id))
        try:
            for column in recipe.text:
                if column not in task.columns:
                    columns = ", ".join(task.columns)
                    hint = f"write text=() for what the task reads ({', '.join(task.text)})"
                    fault = f"the recipe reads column {column!r}"
                    raise InputError(f"{fault}, but task {task.id!r} has {columns}; {hint}")
            if recipe.optim not in self.optimizers:
                names = ", ".join(sorted(self.optimizers))
                raise InputError(f"unknown optimizer {recipe.optim!r}; choose from {names}")
            method.check(recipe)
        except InputError as error:
            raise InputError(f"{cell_id}: {error}") from None
        head = self.heads.get(cell_id) or backbone.heads[task.problem]
        return Cell(
            backbone=backbone,
            task=task,
            method=method,
            recipe=recipe,
            head=complete_head(head, backbone, profile),
            optimizers=self.optimizers,
            profile=profile,
        )

    def _parts(self, cell_id: str) -> tuple[Backbone, Task, Method]:
        try:
            backbone, task, method = cell_id.split("_")
            return self.backbones[backbone], self.tasks[task], self.methods[method]
        except (KeyError, ValueError):
            matches = get_close_matches(cell_id, self.recipes, n=1)
            hint = f" did you mean {matches[0]}?" if matches else ""
            lists = "`tunegrid run -m full --list-cells` lists them"
            more_lists = "-m 'full and larger' and 'full and tasks' list others"
            raise InputError(f"unknown cell {cell_id!r};{hint} {lists}; {more_lists}") from None

    def checked_ids(self, cell_ids: Iterable[str]) -> tuple[str, ...]:
        """Returns the ids; raises InputError if a cell has no recipe or cannot be built."""
        cell_ids = tuple(cell_ids)
        for cell_id in cell_ids:
            reason = self.build_fault(cell_id)
            if cell_id not in self.recipes:
                hint = "a --grid file adds one with grid.add_recipe"
                raise InputError(f"{cell_id} has no recipe, so it does not exist; {hint}")
            if reason:
                raise InputError(f"{cell_id}: {reason}")
        return cell_ids


def plain_targets(head: Head) -> tuple[str, ...]:
    """The target modules for copies of cells that have this head.

    They are taken from the study cell `head.copied_as`.
    """
    adapter = RECIPES[head.copied_as].adapter if head.copied_as else None
    assert adapter, "`copied_as` names a cell with an adapter"
    return adapter.target_modules


def _add(entries: dict[str, Any], kind: str, entry: Any) -> None:
    """Adds an entry; raises InputError if its id is invalid or taken."""
    if not NAME.fullmatch(entry.id):
        expected = "expected lower-case letters and digits, since underscores divide a cell's id"
        raise InputError(f"invalid id of {kind} {entry.id!r}: {expected}")
    if entry.id in entries:
        raise InputError(f"{kind} {entry.id!r} is in the grid already; give yours another id")
    entries[entry.id] = entry


def plan_updates(task: Task, copied: Fields) -> Fields:
    """The minimum and maximum number of updates for a quick recipe copied to another task.

    Within these limits, training makes one pass over the rows. The original number is too small,
    because the micro backbone was pretrained on rows like those of the original task.
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
    """The grid of the study's 27 cells."""
    return Grid(
        backbones={backbone.id: backbone for backbone in BACKBONES},
        tasks={task.id: task for task in TASKS},
        methods={method.id: method for method in METHODS},
        optimizers=dict(OPTIMIZERS),
        recipes=dict(RECIPES),
        quick={cell_id: quick_changes(cell_id) for cell_id in QUICK},
        heads=dict(HEADS),
    )


STUDY = study()
STUDY_IDS = STUDY.ids(Profile(id="full"))
# A third of the study's cells: any backbone and task, backbone and method, or task and method meet
# exactly once.
SMOKE = (
    "bert_sa_lora",
    "bert_qa_qlora",
    "bert_sum_sft",
    "gpt2_sa_qlora",
    "gpt2_qa_sft",
    "gpt2_sum_lora",
    "t5_sa_sft",
    "t5_qa_lora",
    "t5_sum_qlora",
)


def study_place(cell_id: str) -> tuple[tuple[int, str], ...]:
    """A sort key that puts cells in the order of `STUDY_IDS`.

    Tasks, backbones and methods from outside the study come last.
    """
    backbone, task, method = [*cell_id.split("_", 2), "", ""][:3]  # a file may name any cell
    order = ((task, reversed(STUDY.tasks)), (backbone, STUDY.backbones), (method, STUDY.methods))
    ranks = []
    for name, known_names in order:
        names = list(known_names)
        ranks.append((names.index(name) if name in names else len(names), name))
    return tuple(ranks)


def _pop_own_modules() -> dict[str, Any]:
    """Removes the suite's modules from `sys.modules` and returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] in OWN_FOLDERS]
    return {name: sys.modules.pop(name) for name in names}


def add_file(path: Path, grid: Grid) -> None:
    """Runs a user's `--grid` file and its hook, which adds to the grid.

    Raises InputError if the file has no hook, or if it fails; the message names the line if it is
    known.
    """
    name = f"tunegrid_grid_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"--grid {path} is not a Python file")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
    # The file imports its own neighbours, even those named like a folder of the suite.
    modules = _pop_own_modules()
    folders = sys.path[:]
    sys.path[:] = [str(path.parent), *(folder for folder in folders if folder != str(ROOT))]
    try:
        spec.loader.exec_module(module)
        if hook := getattr(module, "pytest_tunegrid_grid", None):
            grid.folder = path.resolve().parent
            hook(grid)
    except InputError as error:
        raise InputError(f"--grid {path}: {error}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may also exit, or skip as a test does
        line = getattr(error, "lineno", None)
        if not line:
            for frame in traceback.extract_tb(error.__traceback__):
                if frame.filename == str(path):
                    line = frame.lineno
        location = f"{path}, line {line}" if line else str(path)
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"--grid {location}: {cause}") from None
    finally:
        grid.folder = None
        _pop_own_modules()
        sys.modules.update(modules)
        # Later imports by the file find its neighbours, too.
        sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]
    if hook is None:
        lack = "has no function pytest_tunegrid_grid(grid), which adds to the grid"
        raise InputError(f"--grid {path} {lack}")
