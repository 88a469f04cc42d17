"""The typed `Record` of one cell, made once of the parts that its stages return.

In files it is the `extra_info` of a pytest-benchmark row, as plain JSON (`tunegrid.record.io`). The JSON schema that
`tunegrid export --schema` prints is generated from these classes. Scores are points, 0 to 100.
"""

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from pydantic import Field

from tunegrid.data.splits import SPLIT_SEED, Splits
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Head
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import Positive
from tunegrid.libraries import library_digests
from tunegrid.machine import versions
from tunegrid.record.parts import (
    AuditFinding,
    CrashRecord,
    DataRecord,
    DeviceRecord,
    Dropped,
    EvaluationRecord,
    ExamplesRecord,
    Flops,
    Hash,
    Id,
    InstrumentRecord,
    Limits,
    Memory,
    ModelRecord,
    Origins,
    Parameters,
    Part,
    Points,
    RanksRecord,
    RecipeRecord,
    Seeds,
    SplitRows,
    Throughput,
    TrainingRecord,
    WarningRecord,
    plain,
)
from tunegrid.record.stock import StockRecord

SCHEMA_VERSION: Final = 4
Status = Literal["unfinished", "passed", "missed", "begun", "stopped", "error", "killed", "not run", "reported"]


@dataclass(frozen=True, kw_only=True)
class Record(Part):
    """One cell's record: `extra_info` of a row in pytest-benchmark's JSON.

    Scores are points from 0 to 100. Units are part of the names. Null means not measured.
    """

    schema_version: Annotated[Literal[4], Field(description="`SCHEMA_VERSION` of the code that wrote it")]
    cell: Annotated[str, Field(pattern="^[a-z0-9]+_[a-z0-9]+_[a-z0-9]+$")]
    profile: Id
    backbone: Id
    task: Id
    method: Id
    main_score: Annotated[str, Field(description="the name under `scores` that the run's table shows")]
    bounded_scores: Annotated[list[str], Field(description="the scores that thresholds and gates judge")]
    labels: Annotated[list[str], Field(description="names of the task's classes; empty where it has none")]
    recipe: RecipeRecord
    limits: Limits
    seeds: Seeds
    versions: Annotated[dict[str, str | None], Field(description="of Python and the libraries; null: not installed")]
    device: DeviceRecord | None
    data: DataRecord | None
    model: ModelRecord | None
    parameters: Parameters | None
    training: TrainingRecord | None
    evaluation: EvaluationRecord | None
    scores: Annotated[dict[str, Points | None], Field(description="points; null: not a number")]
    examples: ExamplesRecord | None
    memory: Memory | None
    throughput: Throughput | None
    flops: Flops | None
    audits: list[AuditFinding]
    bounds: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=100)]], Field(description="minimum points by metric; empty: none apply")
    ]
    missed: Annotated[list[str], Field(description="a sentence for each bound or audit missed, or why the cell did not finish")]
    status: Annotated[
        Status,
        Field(
            description="`begun`: its first updates alone were asked for; `reported`: copied from a publication, not run here"
        ),
    ]
    ranks: Annotated[RanksRecord | None, Field(description="null: one process ran the cell")] = None
    excused: Annotated[
        dict[str, str], Field(description="audits that failed and do not count, each with what the run was too short for")
    ] = field(default_factory=dict)
    warnings: Annotated[
        list[WarningRecord] | None,
        Field(description="what libraries warned of until the cell was recorded; null: nobody counted"),
    ] = None
    libraries: Annotated[
        dict[str, Hash], Field(description="hash of each library's code as it was imported; empty: not known")
    ] = field(default_factory=dict)
    instruments: Annotated[dict[str, InstrumentRecord], Field(description="by id; empty: `--ask` asked nothing")] = field(
        default_factory=dict
    )
    stock: Annotated[StockRecord | None, Field(description="the libraries' own path; null: only -m stock runs it")] = None
    first_updates: Annotated[
        Positive | None, Field(description="it made so many of its updates, as asked, and took no score; null: it was to end")
    ] = None
    crash: Annotated[CrashRecord | None, Field(description="how it broke off; null: it did not, or nothing was kept")] = None

    @property
    def finished(self) -> bool:
        """It ran to its end, so its figures can be compared."""
        return self.status in ("passed", "missed")

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
        if self.memory is None:
            return None
        alone = self.memory.cells_before == 0 or self.memory.peak("reserved_peak_gib") is not None
        return self.peak_gib if alone else None

    @property
    def processes(self) -> str:
        """How many shared the cell, as "1", "4" or "4 (FSDP)"."""
        return f"{self.ranks.count}{' (FSDP)' if self.ranks.fsdp else ''}" if self.ranks else "1"


def new_record(cell: Cell) -> Record:
    """What is known of a cell before it runs; raises InputError where the method's settings cannot be written as JSON."""
    profile = cell.profile
    return Record(
        schema_version=SCHEMA_VERSION,
        cell=cell.id,
        profile=profile.id,
        backbone=cell.backbone.id,
        task=cell.task.id,
        method=cell.method.id,
        main_score=cell.task.main_score,
        bounded_scores=list(cell.task.bounded_scores),
        labels=list(cell.task.labels),
        recipe=recipe_record(cell),
        limits=Limits(
            train_rows=profile.cap(cell.task.id, "train"),
            validation_rows=profile.cap(cell.task.id, "validation"),
            test_rows=profile.cap(cell.task.id, "test"),
            own_test=profile.own_test and cell.task.own_test is not None,
            label_noise=profile.label_noise,
        ),
        seeds=Seeds(seed=profile.seed, split_seed=SPLIT_SEED, perturbation=profile.perturbation),
        versions=versions(),
        device=None,
        data=None,
        model=None,
        parameters=None,
        training=None,
        evaluation=None,
        scores={},
        examples=None,
        memory=None,
        throughput=None,
        flops=None,
        audits=[],
        bounds={},
        missed=[],
        status="unfinished",
        libraries=library_digests(),
    )


def recipe_record(cell: Cell) -> RecipeRecord:
    """The cell's recipe, with the method's settings in the place of its adapter."""
    try:
        adapter = plain(cell.method.settings(cell.recipe))
    except TypeError as error:
        raise InputError(f"{cell.id}: the settings of method {cell.method.id!r} must be plain values: {error}") from None
    return RecipeRecord(**vars(cell.recipe) | {"adapter": adapter}, quantization=cell.quantization)


def data_record(cell: Cell, splits: Splits) -> DataRecord:
    """How many rows came from where, the revision of the data set, and the hash of all rows.

    Origins do not name the folder that holds the data, so that the records of two machines are alike.
    """
    below = f"{cell.profile.data_root}/"
    return DataRecord(
        rows=SplitRows(train=len(splits.train), validation=len(splits.validation), test=len(splits.test)),
        origins=Origins(**{split: origin.replace(below, "") for split, origin in splits.origins.items()}),
        revision=splits.revision,
        fingerprint=splits.fingerprint,
        dropped=Dropped(**splits.dropped) if splits.dropped else None,
    )


def architecture_name(head: Head) -> str:
    """The name of a head's class, given by name or as a class."""
    return head.architecture if isinstance(head.architecture, str) else head.architecture.__name__
