"""The typed `Record` of one cell's run, and what of it is known before the cell runs.

In files it is the `extra_info` of a pytest-benchmark row, as plain JSON. Scores are points, 0 to 100.
"""

from dataclasses import field
from typing import Annotated, Final, Literal

from pydantic import Field

from tunegrid.data.splits import SPLIT_SEED, Splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import Positive
from tunegrid.libraries import library_digests, versions
from tunegrid.record import parts
from tunegrid.record.parts import Hash, Id, Percent, Points, about

SCHEMA_VERSION: Final = 4
Status = Literal[
    "unfinished", "passed", "missed", "audit", "begun", "failed", "stopped", "error", "killed", "not run", "reported"
]


class Record(parts.Part):
    """One cell's record: units are part of the names, null means not measured."""

    schema_version: Annotated[Literal[4], about("`SCHEMA_VERSION` of the code that wrote it")] = SCHEMA_VERSION
    cell: Annotated[str, Field(pattern="^[a-z0-9]+_[a-z0-9]+_[a-z0-9]+$")]
    profile: Id
    backbone: Id
    task: Id
    method: Id
    main_score: Annotated[str, about("the name under `scores` that the run's table shows")]
    bounded_scores: Annotated[list[str], about("the scores that thresholds and gates judge")]
    labels: Annotated[list[str], about("names of the task's classes; empty where it has none")]
    recipe: parts.RecipeRecord
    limits: parts.Limits
    seeds: parts.Seeds
    versions: Annotated[dict[str, str | None], about("of Python and the libraries; null: not installed")]
    device: parts.DeviceRecord | None = None
    data: parts.DataRecord | None = None
    model: parts.ModelRecord | None = None
    parameters: parts.Parameters | None = None
    training: parts.TrainingRecord | None = None
    evaluation: parts.EvaluationRecord | None = None
    scores: Annotated[dict[str, Points | None], about("points; null: not a number")] = field(default_factory=dict)
    examples: parts.ExamplesRecord | None = None
    memory: parts.Memory | None = None
    throughput: parts.Throughput | None = None
    flops: parts.Flops | None = None
    audits: list[parts.AuditFinding] = field(default_factory=list)
    bounds: Annotated[dict[str, Percent], about("minimum points by metric; empty: none apply")] = field(default_factory=dict)
    missed: Annotated[list[str], about("bounds and audits, or why it did not finish")] = field(default_factory=list)
    status: Annotated[Status, about("`begun`, `failed`: for its first updates alone; `reported`: published")] = "unfinished"
    ranks: Annotated[parts.RanksRecord | None, about("null: one process ran the cell")] = None
    excused: Annotated[dict[str, str], about("failed audits that do not count, and why")] = field(default_factory=dict)
    libraries: Annotated[dict[str, Hash], about("hash of each library's code; empty: not known")] = field(default_factory=dict)
    instruments: Annotated[dict[str, parts.InstrumentRecord], about("by id; empty: none")] = field(default_factory=dict)
    first_updates: Annotated[Positive | None, about("it made as many, as asked; null: it was to end")] = None
    crash: Annotated[parts.CrashRecord | None, about("how it broke off; null: it did not, or nothing was kept")] = None

    @property
    def finished(self) -> bool:
        """It ran to its end, so its figures can be compared."""
        return self.status in ("passed", "missed", "audit")

    @property
    def peak_gib(self) -> float | None:
        """The highest memory peak of the cell's phases: of the GPU where there is one, else of the process."""
        if self.memory is None:
            return None
        peak = self.memory.peak("reserved_peak_gib")
        return self.memory.peak("rss_peak_gib") if peak is None else peak

    @property
    def own_peak_gib(self) -> float | None:
        """The same where it is the cell's own: of a GPU's memory, or of a process that ran no cell before."""
        memory = self.memory
        alone = memory is not None and (memory.cells_before == 0 or memory.peak("reserved_peak_gib") is not None)
        return self.peak_gib if alone else None

    @property
    def processes(self) -> str:
        """How many shared the cell, as "1", "4" or "4 (FSDP)"."""
        return f"{self.ranks.count}{' (FSDP)' if self.ranks.fsdp else ''}" if self.ranks else "1"


def new_record(cell: Cell) -> Record:
    """What is known of a cell before it runs; raises InputError where the method's settings cannot be written as JSON."""
    profile, task = cell.profile, cell.task
    caps = {f"{split}_rows": profile.cap(task.id, split) for split in ("train", "validation", "test")}
    own_test = profile.own_test and task.own_test is not None
    return Record(
        cell=cell.id,
        profile=profile.id,
        backbone=cell.backbone.id,
        task=task.id,
        method=cell.method.id,
        main_score=task.main_score,
        bounded_scores=list(task.bounded_scores),
        labels=list(task.labels),
        recipe=recipe_record(cell),
        limits=parts.Limits(**caps, own_test=own_test, label_noise=profile.label_noise),
        seeds=parts.Seeds(seed=profile.seed, split_seed=SPLIT_SEED, perturbation=profile.perturbation),
        versions=versions(),
        libraries=library_digests(),
    )


def recipe_record(cell: Cell) -> parts.RecipeRecord:
    """The cell's recipe, with the method's settings in the place of its adapter."""
    try:
        adapter = parts.jsonable(cell.method.settings(cell.recipe))
    except TypeError as error:
        raise InputError(f"{cell.id}: the settings of method {cell.method.id!r} must be plain values: {error}") from None
    return parts.RecipeRecord(**vars(cell.recipe) | {"adapter": adapter}, quantization=cell.quantization)


def data_record(cell: Cell, splits: Splits) -> parts.DataRecord:
    """How many rows came from where, the revision of the data set, and the hash of all rows."""
    folder = f"{cell.profile.data_root}/"  # left out of origins, so that the records of two machines are alike
    return parts.DataRecord(
        rows={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        origins={split: origin.replace(folder, "") for split, origin in splits.origins.items()},
        revision=splits.revision,
        fingerprint=splits.fingerprint,
        dropped=dict(splits.dropped) or None,
    )
