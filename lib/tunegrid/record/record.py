"""Defines the typed `Record` of one cell's run and its parts, and builds records.

Files hold a record as the `extra_info` of a pytest-benchmark row. `tunegrid export --schema` prints
the fields' descriptions and bounds and the docstrings of the parts. Scores are points from 0 to
100. Field names include units. None (null in JSON) means that a figure was not measured, unless the
field's description says otherwise.
"""

import math
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, dataclass_transform, get_args

from pydantic import ConfigDict, Field

from tunegrid.data.splits import SPLIT_SEED, Splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import Quantization
from tunegrid.grid.recipes import Amount, Count, Hyperparameters, Positive, Precision, Share
from tunegrid.libraries import loaded_kernels
from tunegrid.machine import library_digests, versions
from tunegrid.terminal import defuse, strip_places

SCHEMA_VERSION: Final = 4
# "unconfirmed" means that the cell missed bounds that its other training run reached, "known" that
# an audit failed by a known fault of a library.
Finished = Literal["passed", "unconfirmed", "known", "missed", "audit"]
Status = Literal[
    Finished,
    "unfinished",
    "begun",
    "failed",
    "stopped",
    "error",
    "killed",
    "not run",
    "reported",
]
# The suite's own work, which does not count as a cost of the cell. Only versions up to 0.17 wrote
# the phase `calibrate`.
OWN_PHASES = ("audit", "calibrate", "trace")

Id = Annotated[str, Field(pattern="^[a-z0-9]+$")]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Weights = Annotated[str, Field(pattern="^([0-9a-f]{16}|[0-9a-f]{40})$")]
FiguresFile = Annotated[str, Field(pattern="^figures-([0-9a-f]{16}|[0-9a-f]{20})[.]parquet$")]
RowsFile = Annotated[str, Field(pattern="^rows-([0-9a-f]{16}|[0-9a-f]{20})[.]parquet$")]
ModulesFile = Annotated[str, Field(pattern="^modules-([0-9a-f]{16}|[0-9a-f]{20})[.]parquet$")]
Rate = Annotated[float, Field(gt=0)]
Bound = Annotated[float, Field(gt=0, le=100)]
Percent = Annotated[float, Field(ge=0, le=100)]
Score = Annotated[float, Field(ge=0, le=100.000001)]  # rounding can lift a mean of 100s above 100


def note(text: str) -> Any:
    """Describes a field in the schema."""
    return Field(description=text)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Part:
    """A part of a record; subclasses become frozen dataclasses that pydantic reads strictly."""

    __pydantic_config__: ClassVar[ConfigDict] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
    }

    def __init_subclass__(cls) -> None:
        """Turns the subclass into a dataclass."""
        dataclass(frozen=True, kw_only=True)(cls)


class RecipeRecord(Hyperparameters, Part):
    """The recipe as requested, with the command line's changes.

    `training.precision` says which precision was used.
    """

    adapter: Annotated[
        dict[str, Any] | None,
        note("the method's settings, as LoRA's rank; null: no adapter"),
    ]
    quantization: Quantization | None


class Limits(Part):
    """The maximum number of rows used from each split; null means all rows."""

    train_rows: Positive | None
    validation_rows: Positive | None
    test_rows: Positive | None
    own_test: Annotated[bool, note("scored on the data set's own test split")]
    label_noise: Annotated[
        Share,
        note("of training rows with a wrong target, in 0.20 and before"),
    ] = 0.0


class Seeds(Part):
    """The seeds that determine all randomness."""

    seed: Annotated[int | None, note("of weights, dropout and the order of rows; null: not known")]
    split_seed: int
    perturbation: Annotated[
        Count | None,
        note("draw of the noise that moved the start in its last digits; null: none did"),
    ]
    confirms: Annotated[
        int | None,
        note("the seed whose miss this training confirms or not; null: a seed of the run"),
    ] = None


class DeviceRecord(Part):
    """The device that the cell ran on."""

    type: Literal["cpu", "cuda"]
    name: str
    threads: Annotated[Positive | None, note("torch's on a CPU; null on a GPU")]
    attention: str
    tf32: bool | None
    used_by_others_gib: Annotated[
        float | None,
        note("on the GPU, beyond what this process reserved; a CUDA context is 0.5"),
    ]
    contended: Annotated[
        bool | None,
        note("others used the device at the same time; null on a CPU"),
    ]
    instructions: Annotated[
        str | None,
        note("that torch's own kernels use, as AVX512; null: on a GPU, or not known"),
    ] = None
    energy: Annotated[
        str | None,
        note("the counter behind the joules, or why there is none; null: an older run"),
    ] = None


Split = Annotated[str, Field(pattern="^(train|validation|test)$")]


class DataRecord(Part):
    """Facts about the cell's rows; `data` is null if random token ids replaced the rows' text."""

    rows: Annotated[dict[Split, Count], Field(min_length=3, description="how many")]
    origins: Annotated[dict[Split, str], Field(min_length=3)]
    fingerprint: Annotated[Hash, note("hash of all rows")]
    revision: Annotated[Commit | None, note("the hub's commit; null for a local folder")]
    dropped: Annotated[
        dict[Split, Count] | None,
        note("rows that copied rows that score; null: not looked for"),
    ] = None


class ModelRecord(Part):
    """The model that was fine-tuned."""

    checkpoint: str
    fingerprint: Annotated[
        Weights | None,
        note("16 digits of a local folder's weights, or the hub's commit"),
    ]
    architecture: str
    adapted_modules: Annotated[
        list[str],
        note("modules without pretrained weights that an adapter trains"),
    ]


class Parameters(Part):
    """The number of trainable parameters and of all parameters."""

    trainable_params: Count
    total_params: Positive
    trainable_percent: Percent


GroupFigures = Annotated[
    dict[str, float | None],
    note("by group of parameters; null: no finite number"),
]
Reached = Annotated[
    dict[str, Count],
    note("by group of parameters: those whose gradient is not zero"),
]


class FirstStep(Part):
    """Figures from before and during the first updates, which reveal changes without statistics."""

    tokens: Annotated[Hash, note("hash of the training features' token ids and targets")]
    types: Annotated[dict[str, str], note("how each group's weights are stored")]
    weights: Annotated[GroupFigures, note("norms before training")]
    stream: Annotated[Hash, note("hash of numbers and of a dropout mask drawn from a fixed seed")]
    drawn: Annotated[Hash, note("hash of the generator's state after the first update")]
    probe_loss: Annotated[float | None, note("nats a target, of a few rows without dropout")]
    probe_gradients: Annotated[GroupFigures, note("norms of the gradients of that loss")]
    gradients: Annotated[
        GroupFigures,
        note("norms of the first update's gradients, after clipping"),
    ]
    moved: Annotated[
        GroupFigures,
        note("norms of what the first three updates changed, over sampled values"),
    ]
    generated: Annotated[Hash | None, note("hash of token ids that the untrained model generates")]
    metrics: Annotated[dict[str, Score | None], note("scores of fixed answers")]
    probe: Annotated[
        Hash | None,
        note("hash of rows and search: figures of two probes are not compared"),
    ] = None
    digits: Annotated[
        dict[str, str] | None,
        note("types that hold each group's trained weights before training; null: not taken"),
    ] = None
    computed: Annotated[
        dict[str, str] | None,
        note("types in which layers packed to 4 bits compute; null: not known"),
    ] = None
    probe_reached: Annotated[
        Reached | None,
        note("tensors with a gradient of the probe's loss"),
    ] = None
    reached: Annotated[Reached | None, note("tensors with a gradient in the first update")] = None
    decoded: Annotated[
        Amount | None,
        note("how far a cache takes a search's scores, as a share of the largest logit"),
    ] = None
    predicted: Annotated[
        Hash | None,
        note("hash of what the untrained model predicts for test rows; null: not asked"),
    ] = None
    untrained: Annotated[
        list[Score] | None,
        note("points of the first test rows before training; null: not asked"),
    ] = None
    test_tokens: Annotated[
        Hash | None,
        note("hash of the test rows' token ids; null: not taken"),
    ] = None
    tokens_read: Annotated[
        Count | None,
        note("by the decoder in the probe's search; without a cache many more"),
    ] = None
    modules: Annotated[
        ModulesFile | None,
        note("each module's figures in the probe, in `examples`; null: not kept"),
    ] = None


class TrainingRecord(Part):
    """The history of a training run."""

    seconds: Annotated[Amount, note("of all updates, without encoding and validation")]
    updates: Count
    precision: Annotated[Precision, note("what the device could do")]
    losses: Annotated[list[Amount | None], note("nats a target, one an update; null: not a number")]
    final_learning_rate: Amount | None
    epoch_scores: Annotated[list[Score | None], note("validation score after each epoch")]
    chosen_epoch: Positive | None
    stopped: Annotated[str | None, note("why training ended early")]
    micro_batch: Annotated[Positive, note("rows; fewer than the recipe's if memory ran out")]
    fallbacks: Annotated[list[str], note("how training differed from the recipe, and why")]
    order: Annotated[
        str,
        Field(pattern="^([0-9a-f]{16})?$", description="hash of the rows in the order trained on"),
    ]
    tokens: Annotated[Count, note("real tokens, over all updates")]
    gradient_norm: Annotated[
        Amount | None,
        note("of the first update, before clipping; null: no clipping"),
    ]
    clipped_norm: Annotated[Amount | None, note("the same after clipping")]
    first_step: Annotated[FirstStep | None, note("null: not taken, as in footprints")]
    planned: Annotated[
        Count | None,
        note("updates that the recipe plans without the command line's changes; null: not known"),
    ] = None
    asked: Annotated[
        Count | None,
        note("updates that the run was to make, with those changes; null: an older run"),
    ] = None

    @property
    def due(self) -> int:
        """The updates of a whole run; of an older run, those of its recipe; 0 if unknown."""
        return (self.planned if self.asked is None else self.asked) or 0


class EvaluationRecord(Part):
    """How the test rows were predicted and scored."""

    seconds: Annotated[Amount | None, note("of prediction alone, without encoding and scoring")]
    loss: Amount | None
    batch: Positive | None
    metric_sources: Annotated[dict[str, str], note("which implementation computed the scores")]
    # If this is fp32, a 4-bit or bf16 base still computes in its own type.
    precision: Annotated[Precision | None, note("of prediction; null: not known")] = None
    generated_tokens: Annotated[
        dict[str, Amount] | None,
        note("mean, median and longest text; null: none, or unknown"),
    ] = None


class ExamplesRecord(Part):
    """The Parquet files of the test rows' points, predictions and texts, and a hash of the rows.

    The files are in the folder `examples` next to the run.
    """

    file: Annotated[str, Field(pattern="^([0-9a-f]{16}|[0-9a-f]{20})[.]parquet$")]
    rows_hash: Hash
    texts: Annotated[
        RowsFile | None,
        note("what the rows say; null before 0.22: `rows-` and their hash"),
    ] = None


class Figure(Part):
    """Settings for judging and showing one figure of an instrument."""

    better: Annotated[
        Literal["higher", "lower", ""],
        note("in every part of the figure; empty: it is never judged"),
    ] = ""
    margin: Annotated[
        Amount,
        note("the smallest change, for the worse or better, that counts"),
    ] = 0.0
    shown: Annotated[
        str,
        Field(pattern="^([+]?[.][0-9]f)?$", description="its format; empty: not in the table"),
    ] = ""


class InstrumentRecord(Part):
    """An instrument's measurements of the cell, beyond its scores.

    The figures are declared here, so that they can be read without the instrument.
    """

    question: str
    figures: Annotated[dict[str, Figure], note("in the order of the table")]
    file: Annotated[
        FiguresFile | None,
        note("their values, in `examples` beside the run; null: could not be kept"),
    ]


class Phase(Part):
    """Time, memory peaks and energy of one phase; a figure is null if it was not measured."""

    seconds: Amount
    rss_peak_gib: Amount | None
    allocated_peak_gib: Amount | None
    reserved_peak_gib: Amount | None
    gpu_energy_joules: Annotated[
        Amount | None,
        note("by NVML's counter of the card, idle power included"),
    ] = None
    cpu_energy_joules: Annotated[
        Amount | None,
        note("by RAPL's counters, in runs of 0.17 and before; null since"),
    ] = None


class Ledger(Part):
    """Bytes of memory and storage that fine-tuning needs, by what they hold."""

    weights_bytes: Positive | None
    gradients_bytes: Count | None
    optimizer_bytes: Count | None
    checkpoint_bytes: Annotated[
        Count | None,
        note("of what trains: an adapter, or the whole model"),
    ]
    activations_bytes: Annotated[
        int | None,
        note("peak minus weights, gradients and optimizer state; footprints only"),
    ]
    peak_bytes: Annotated[
        Count | None,
        note("most bytes of tensors held during one update; footprints only"),
    ]

    @property
    def tensor_bytes(self) -> int | None:
        """Total bytes of weights, gradients and optimizer state; None if any is unknown."""
        sizes = (self.weights_bytes, self.gradients_bytes, self.optimizer_bytes)
        known_sizes = [size for size in sizes if size is not None]
        return sum(known_sizes) if len(known_sizes) == len(sizes) else None


class Memory(Part):
    """Time, memory peaks and energy by phase, and the ledger of tensors."""

    phases: dict[str, Phase]
    ledger: Ledger
    cells_before: Annotated[
        Count | None,
        note("that its process ran before: their rest counts in `rss_peak_gib`"),
    ] = None

    def peak(self, figure: str) -> float | None:
        """The highest peak, in GiB, of the cell's own phases; `figure` names a field of `Phase`."""
        peaks = [peak for peak in self._phase_figures(figure) if peak is not None]
        return max(peaks, default=None)

    def joules(self, figure: str) -> float | None:
        """The energy of the cell's own phases, in joules; None if any phase's energy is unknown."""
        figures = self._phase_figures(figure)
        return None if not figures or None in figures else sum(figures)

    def _phase_figures(self, figure: str) -> list[Any]:
        own_phases = [phase for name, phase in self.phases.items() if name not in OWN_PHASES]
        return [getattr(phase, figure) for phase in own_phases]


class Throughput(Part):
    """Rates of evaluation, and of training after warm-up (null if the run was too short)."""

    train_samples_per_second: Rate | None
    train_tokens_per_second: Annotated[Rate | None, note("real tokens, without padding")]
    train_steps_per_second: Rate | None
    step_seconds_median: Rate | None
    step_seconds_p90: Rate | None
    step_seconds: Annotated[list[Amount], note("of each update after warm-up")]
    padding_share: Share | None
    measured_steps: Count
    warmup_steps: Count
    eval_samples_per_second: Rate | None
    generated_tokens_per_second: Amount | None


class Flops(Part):
    """The FLOPs of an update and the rate achieved; footprints only."""

    flops_per_step: Annotated[Count, note("of one update, by torch's FlopCounterMode")]
    achieved_flops_per_second: Amount | None
    matmul_flops_per_second: Annotated[
        Amount,
        note("of large square matrices in the same precision, in the same process"),
    ]
    mfu_percent: Amount | None


class AuditFinding(Part):
    """The result of one audit."""

    name: str
    passed: bool
    detail: str
    without_model: Annotated[
        dict[str, Score] | None,
        note("points by score that an answer reaches which needs none"),
    ] = None
    value: Annotated[float | None, note("what was measured; null: not kept, or not finite")] = None
    limit: Annotated[
        float | None,
        note("the largest value that passes; null: the audit has none"),
    ] = None


class RanksRecord(Part):
    """The processes (ranks) that shared a cell.

    Outside `each`, times and memory are those of the first rank, and rates cover all ranks.
    """

    count: Annotated[int, Field(ge=2)]
    backend: Annotated[Literal["gloo", "nccl"], note("what they talk over")]
    fsdp: Annotated[
        bool,
        note("each held a part of all weights; bytes are the first one's"),
    ] = False
    each: Annotated[
        list[dict[str, Amount | None]],
        note("in the order of ranks: own peaks, rows, rates after warm-up"),
    ]


class CrashRecord(Part):
    """The end of a cell's traceback and the last lines that the cell printed."""

    traceback: Annotated[
        list[str],
        note("empty: a sentence says all, or the process left no exception"),
    ]
    printed: Annotated[list[str], note("on standard output, standard error and the log")]


class KernelRecord(Part):
    """Compiled code that the package `kernels` loaded."""

    commit: Annotated[Commit | None, note("in the hub's repository; null: a user's folder")]
    digest: Annotated[Hash, note("of its files")]


class Record(Part):
    """The record of one cell's run."""

    schema_version: Annotated[
        Literal[4],
        note("`SCHEMA_VERSION` of the code that wrote it"),
    ] = SCHEMA_VERSION
    cell: Annotated[str, Field(pattern="^[a-z0-9]+_[a-z0-9]+_[a-z0-9]+$")]
    profile: Id
    backbone: Id
    task: Id
    method: Id
    main_score: Annotated[str, note("the name under `scores` that the run's table shows")]
    bounded_scores: Annotated[list[str], note("the scores that thresholds and gates judge")]
    labels: Annotated[list[str], note("names of the task's classes; empty if it has none")]
    recipe: RecipeRecord
    limits: Limits
    seeds: Seeds
    versions: Annotated[
        dict[str, str | None],
        note("of Python and the libraries; null: not installed"),
    ]
    device: DeviceRecord | None = None
    data: DataRecord | None = None
    model: ModelRecord | None = None
    parameters: Parameters | None = None
    training: TrainingRecord | None = None
    evaluation: EvaluationRecord | None = None
    scores: Annotated[
        dict[str, Score | None],
        note("points; null: not a number"),
    ] = field(default_factory=dict)
    examples: ExamplesRecord | None = None
    memory: Memory | None = None
    throughput: Throughput | None = None
    flops: Flops | None = None
    audits: list[AuditFinding] = field(default_factory=list)
    bounds: Annotated[
        dict[str, Bound],
        note("minimum points by metric; empty: none apply"),
    ] = field(default_factory=dict)
    missed: Annotated[
        list[str],
        note("bounds and audits, or why it did not finish"),
    ] = field(default_factory=list)
    status: Annotated[
        Status,
        note("`begun`, `failed`: for its first updates alone; `reported`: published"),
    ] = "unfinished"
    ranks: Annotated[RanksRecord | None, note("null: one process ran the cell")] = None
    excused: Annotated[
        dict[str, str],
        note("failed audits that do not count, and why"),
    ] = field(default_factory=dict)
    known: Annotated[
        dict[str, str],
        note("audits that failed by a known fault of a library, and which"),
    ] = field(default_factory=dict)
    libraries: Annotated[
        dict[str, Hash],
        note("hash of each library's code; empty: not known"),
    ] = field(default_factory=dict)
    kernels: Annotated[
        dict[str, KernelRecord],
        note("compiled code that `kernels` loaded, by repository; empty: none"),
    ] = field(default_factory=dict)
    instruments: Annotated[
        dict[str, InstrumentRecord],
        note("by id; empty: none"),
    ] = field(default_factory=dict)
    first_updates: Annotated[
        Positive | None,
        note("it made as many, as asked; null: it was to end"),
    ] = None
    crash: Annotated[
        CrashRecord | None,
        note("how it broke off; null: it did not, or nothing was kept"),
    ] = None

    @property
    def finished(self) -> bool:
        """Checks whether the cell ran to the end, so that its figures can be compared."""
        return self.status in get_args(Finished)

    @property
    def unharmed(self) -> bool:
        """Checks whether the cell passed, or only missed bounds that its other run reached."""
        return self.status in ("passed", "unconfirmed")

    @property
    def uncounted(self) -> dict[str, str]:
        """The failed audits that do not count, and why."""
        return self.excused | self.known

    @property
    def is_short(self) -> bool:
        """Checks whether the run ended before the updates due or was too small for some audits."""
        if self.excused:
            return True
        return self.training is not None and self.training.updates < self.training.due

    @property
    def peak_gib(self) -> float | None:
        """The highest memory peak of the cell's own phases, on the GPU or else of the process."""
        if self.memory is None:
            return None
        peak = self.memory.peak("reserved_peak_gib")
        return self.memory.peak("rss_peak_gib") if peak is None else peak

    @property
    def own_peak_gib(self) -> float | None:
        """`peak_gib` if it is GPU memory or the process ran no earlier cell; otherwise None."""
        if self.memory is None:
            return None
        peak = self.memory.peak("reserved_peak_gib")
        return self.peak_gib if peak is not None or self.memory.cells_before == 0 else None

    @property
    def processes(self) -> str:
        """The number of processes that shared the cell: "1", "4" or "4 (FSDP)"."""
        if self.ranks is None:
            return "1"
        return f"{self.ranks.count} (FSDP)" if self.ranks.fsdp else str(self.ranks.count)


def new_record(cell: Cell) -> Record:
    """Creates the record of a cell that has not run yet.

    Raises InputError if the method's settings cannot be written as JSON.
    """
    profile = cell.profile
    task = cell.task
    limits = Limits(
        train_rows=profile.cap(task.id, "train"),
        validation_rows=profile.cap(task.id, "validation"),
        test_rows=profile.cap(task.id, "test"),
        own_test=profile.own_test and task.own_test is not None,
    )
    seeds = Seeds(
        seed=profile.seed,
        split_seed=SPLIT_SEED,
        perturbation=profile.perturbation,
        confirms=profile.confirms,
    )
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
        limits=limits,
        seeds=seeds,
        versions=versions(),
        libraries=library_digests(),
        kernels={name: KernelRecord(**vars(kernel)) for name, kernel in loaded_kernels().items()},
    )


def recipe_record(cell: Cell) -> RecipeRecord:
    """The cell's recipe, with the method's settings as `adapter`."""
    try:
        adapter = jsonable(cell.method.settings(cell.recipe))
    except TypeError as error:
        settings = f"the settings of method {cell.method.id!r}"
        raise InputError(f"{cell.id}: {settings} must be plain values: {error}") from None
    return RecipeRecord(**vars(cell.recipe) | {"adapter": adapter}, quantization=cell.quantization)


def data_record(cell: Cell, splits: Splits) -> DataRecord:
    """The row counts, origins, revision and hash of a cell's data."""
    rows = {
        "train": len(splits.train),
        "validation": len(splits.validation),
        "test": len(splits.test),
    }
    folder = f"{cell.profile.data_root}/"  # removed, so that records do not depend on the machine
    origins = {split: origin.replace(folder, "") for split, origin in splits.origins.items()}
    return DataRecord(
        rows=rows,
        origins=origins,
        revision=splits.revision,
        fingerprint=splits.fingerprint,
        dropped=dict(splits.dropped) or None,
    )


CALLS = 20  # stack frames kept of each exception, the innermost ones
TRACEBACK_LINES = 80
PRINTED_LINES = 30
LONGEST_LINE = 400
TERMINAL_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def crash_record(error: BaseException | None, printed: Iterable[str]) -> CrashRecord | None:
    """The last lines of a traceback and of the cell's output; None if both are empty."""
    frames = traceback.format_exception(error, limit=-CALLS) if error else []
    traceback_lines = _last_lines("".join(frames), TRACEBACK_LINES)
    printed_lines = _last_lines("\n".join(printed), PRINTED_LINES)
    if not traceback_lines and not printed_lines:
        return None
    return CrashRecord(traceback=traceback_lines, printed=printed_lines)


def _last_lines(text: str, number: int) -> list[str]:
    """The last nonblank lines of a text, without characters that a carriage return overwrote."""
    lines = []
    for line in TERMINAL_ESCAPES.sub("", text).split("\n"):
        line = line.rstrip("\r").rpartition("\r")[2].expandtabs(4)
        if line.strip():
            lines.append(defuse(line)[:LONGEST_LINE])
    return lines[-number:]


def jsonable(value: Any) -> Any:
    """Converts a value to JSON's types; NaN and infinity become None.

    Secrets in texts are removed, and absolute paths are shortened. NumPy and torch scalars become
    numbers. Raises TypeError for a value that JSON cannot hold, which pytest-benchmark would
    otherwise write as "UNSERIALIZABLE[...]".
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return strip_places(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, dict) or is_dataclass(value):
        fields = value if isinstance(value, dict) else vars(value)
        return {str(key): jsonable(item) for key, item in fields.items()}
    if hasattr(value, "item"):  # a scalar of NumPy or torch
        return jsonable(value.item())
    raise TypeError(f"a record cannot hold {value!r} of {type(value).__name__}")
