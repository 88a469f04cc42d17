"""The parts of a record: plain dataclasses, with the bounds that reading one checks.

Descriptions and bounds reach `tunegrid export --schema`. Units are part of the names. None, null in JSON, means not measured.
"""

import math
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from tunegrid.grid.methods import Quantization
from tunegrid.grid.recipes import Amount, Count, Hyperparameters, Positive, Precision, Share
from tunegrid.places import without_places
from tunegrid.terminal import visible

OWN_PHASES = ("audit", "calibrate", "trace")  # what the suite does for itself: it does not count as the cell's cost

Id = Annotated[str, Field(pattern="^[a-z0-9]+$")]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Points = Annotated[float, Field(ge=0, le=100.000001)]  # a mean of 100s may be off by rounding


class Part:
    """A part of a record. Reading one is strict: no other field, no other type, no infinite number or NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class RecipeRecord(Hyperparameters, Part):
    """The recipe that was asked for, options applied; `training.precision` says what the device could do."""

    adapter: Annotated[dict[str, Any] | None, Field(description="the method's settings, as LoRA's rank; null: no adapter")]
    quantization: Quantization | None


@dataclass(kw_only=True)
class Limits(Part):
    """At most so many rows of each split; null: every row."""

    train_rows: Positive | None
    validation_rows: Positive | None
    test_rows: Positive | None
    own_test: Annotated[bool, Field(description="scored on the data set's own test split")]
    label_noise: Annotated[Share, Field(description="of the training rows, which got a wrong target")] = 0.0


@dataclass(kw_only=True)
class Seeds(Part):
    """What randomness starts from."""

    seed: Annotated[int | None, Field(description="of weights, dropout and the order of rows; null: not known")]
    split_seed: int
    perturbation: Annotated[
        Count | None, Field(description="draw of the noise that moved the start in its last digits; null: none did")
    ]


@dataclass(kw_only=True)
class DeviceRecord(Part):
    """Where the cell ran."""

    type: Literal["cpu", "cuda"]
    name: str
    threads: Annotated[Positive | None, Field(description="torch threads of a CPU run; null on a GPU")]
    attention: str
    tf32: bool | None
    used_by_others_gib: Annotated[
        float | None,
        Field(description="held on the GPU beyond what this process reserved; its own CUDA context is about 0.5"),
    ]
    contended: Annotated[bool | None, Field(description="others used the device at the same time; null on a CPU")]
    instructions: Annotated[
        str | None, Field(description="that torch's own kernels use, as AVX512; null: on a GPU, or not known")
    ] = None
    energy: Annotated[
        str | None, Field(description="the counters behind the joules of the phases, or why there are none; null: an older run")
    ] = None


@dataclass(kw_only=True)
class SplitRows(Part):
    """Rows of each split."""

    train: Count
    validation: Count
    test: Count


@dataclass(kw_only=True)
class Dropped(Part):
    """Rows left out of a split because the same text stands in one that scores it."""

    train: Count
    validation: Count


@dataclass(kw_only=True)
class Origins(Part):
    """Where each split came from."""

    train: str
    validation: str
    test: str


@dataclass(kw_only=True)
class DataRecord(Part):
    """The rows; null where random token ids stood in for text."""

    rows: SplitRows
    origins: Origins
    fingerprint: Annotated[Hash, Field(description="hash of all rows")]
    revision: Annotated[
        Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None, Field(description="the hub's commit; null for a local folder")
    ]
    dropped: Annotated[
        Dropped | None, Field(description="rows left out as copies of rows that score; null: the run did not look for any")
    ] = None


@dataclass(kw_only=True)
class ModelRecord(Part):
    """What was fine-tuned."""

    checkpoint: str
    fingerprint: Annotated[
        Annotated[str, Field(pattern="^([0-9a-f]{16}|[0-9a-f]{40})$")] | None,
        Field(description="16 digits of a local folder's weights, or the hub's revision"),
    ]
    architecture: str
    adapted_modules: Annotated[list[str], Field(description="modules without pretrained weights that an adapter trains")]


@dataclass(kw_only=True)
class Parameters(Part):
    """How many parameters the model has, and how many of them train."""

    trainable_params: Count
    total_params: Positive
    trainable_percent: Annotated[float, Field(ge=0, le=100)]


Figures = Annotated[dict[str, float | None], Field(description="by group of parameters; null: no finite number")]

Reached = Annotated[dict[str, Count], Field(description="by group of parameters: those whose gradient is not zero")]


@dataclass(kw_only=True)
class FirstStep(Part):
    """Figures that tell a change without statistics: before training, and of the first update."""

    tokens: Annotated[Hash, Field(description="hash of the training features' token ids and targets")]
    types: Annotated[dict[str, str], Field(description="how each group's weights are stored")]
    weights: Annotated[Figures, Field(description="norms before training")]
    stream: Annotated[Hash, Field(description="hash of numbers and of a dropout mask drawn from a fixed seed")]
    drawn: Annotated[Hash, Field(description="hash of the generator's state after the first update")]
    probe_loss: Annotated[float | None, Field(description="nats a target, of a few rows without dropout")]
    probe_gradients: Annotated[Figures, Field(description="norms of the gradients of that loss")]
    gradients: Annotated[Figures, Field(description="norms of the first update's gradients, after clipping")]
    moved: Annotated[Figures, Field(description="norms of what the first three updates changed, over sampled values")]
    generated: Annotated[Hash | None, Field(description="hash of token ids that the untrained model generates")]
    metrics: Annotated[dict[str, Points | None], Field(description="scores of fixed answers")]
    probe: Annotated[
        Hash | None,
        Field(description="hash of rows and search: figures of two probes are not compared"),
    ] = None
    computed: Annotated[
        dict[str, str] | None, Field(description="types in which layers packed to 4 bits compute; null: not looked at")
    ] = None
    probe_reached: Annotated[Reached | None, Field(description="tensors with a gradient of the probe's loss")] = None
    reached: Annotated[Reached | None, Field(description="tensors with a gradient in the first update")] = None
    decoded: Annotated[
        Amount | None,
        Field(description="how far a cache takes a search's scores, as a share of the largest logit"),
    ] = None
    predicted: Annotated[
        Hash | None, Field(description="hash of what the untrained model predicts for a few test rows; null: not asked")
    ] = None
    modules: Annotated[
        Annotated[str, Field(pattern="^modules-[0-9a-f]{16}[.]parquet$")] | None,
        Field(description="figures of each module in the probe: a Parquet file in `examples` beside the run; null: not kept"),
    ] = None


@dataclass(kw_only=True)
class TrainingRecord(Part):
    """The course of training."""

    seconds: Annotated[Amount, Field(description="of all updates, without encoding and validation")]
    updates: Count
    precision: Annotated[Precision, Field(description="what the device could do")]
    losses: Annotated[list[Amount | None], Field(description="nats a target, one an update; null: not a number")]
    final_learning_rate: Amount | None
    epoch_scores: Annotated[list[Points | None], Field(description="validation score after each epoch")]
    chosen_epoch: Positive | None
    stopped: Annotated[str | None, Field(description="why training ended early")]
    micro_batch: Annotated[int, Field(ge=1, description="rows of a micro-batch; below the recipe's where memory ran out")]
    fallbacks: Annotated[list[str], Field(description="where training departed from the recipe, and why")]
    order: Annotated[str, Field(pattern="^([0-9a-f]{16})?$", description="hash of the rows in the order trained on")]
    tokens: Annotated[int, Field(ge=0, description="real tokens, over all updates")]
    gradient_norm: Annotated[Amount | None, Field(description="of the first update, before clipping; null: no clipping")]
    clipped_norm: Annotated[Amount | None, Field(description="the same after clipping")]
    first_step: Annotated[FirstStep | None, Field(description="null: not taken, as in footprints")]


@dataclass(kw_only=True)
class GeneratedRecord(Part):
    """Tokens of the generated texts, the end token included."""

    mean: Amount
    median: Amount
    longest: Count


@dataclass(kw_only=True)
class EvaluationRecord(Part):
    """How the test rows were predicted and scored."""

    seconds: Annotated[Amount | None, Field(description="of prediction alone, without encoding and scoring")]
    loss: Amount | None
    batch: Positive | None
    metric_sources: Annotated[dict[str, str], Field(description="which implementation computed the scores")]
    precision: Annotated[
        Precision | None,
        Field(description="of prediction; where it is fp32, a packed or bf16 base computes in its own type; null: not known"),
    ] = None
    generated_tokens: Annotated[
        GeneratedRecord | None, Field(description="null: the cell generates nothing, or an older run did not count")
    ] = None


@dataclass(kw_only=True)
class ExamplesRecord(Part):
    """Points and prediction of each test row: a Parquet file in `examples` beside the run, and the hash of the rows."""

    file: Annotated[str, Field(pattern="^[0-9a-f]{16}[.]parquet$")]
    rows_hash: Hash


@dataclass(kw_only=True)
class Figure(Part):
    """How one figure of an instrument is judged and shown."""

    better: Annotated[
        Literal["higher", "lower", ""], Field(description="in every part of the figure; empty: it is never judged")
    ] = ""
    margin: Annotated[Amount, Field(description="the smallest change, for the worse or better, that counts")] = 0.0
    shown: Annotated[str, Field(pattern="^([+]?[.][0-9]f)?$", description="its format; empty: not in the table")] = ""


@dataclass(kw_only=True)
class InstrumentRecord(Part):
    """What the cell was asked beside its scores: the figures are declared here, so that readers need no instrument."""

    question: str
    figures: Annotated[dict[str, Figure], Field(description="in the order of the table")]
    file: Annotated[
        str | None,
        Field(
            pattern="^figures-[0-9a-f]{16}[.]parquet$",
            description="their values, in `examples` beside the run; null: could not be kept",
        ),
    ]


@dataclass(kw_only=True)
class Phase(Part):
    """Time, memory peaks and energy of one phase; null: no such device, or no such figure on it."""

    seconds: Amount
    rss_peak_gib: Amount | None
    allocated_peak_gib: Amount | None
    reserved_peak_gib: Amount | None
    gpu_energy_joules: Annotated[
        Amount | None, Field(description="by NVML's counter of the card, idle power included; null: not measured")
    ] = None
    cpu_energy_joules: Annotated[
        Amount | None,
        Field(description="by RAPL's counters of the machine's processors, whatever ran on them; null: not measured"),
    ] = None


@dataclass(kw_only=True)
class Ledger(Part):
    """Bytes of the tensors that fine-tuning keeps."""

    weights_bytes: Count | None
    gradients_bytes: Count | None
    optimizer_bytes: Count | None
    checkpoint_bytes: Annotated[Count | None, Field(description="of what trains: an adapter, or the whole model")]
    activations_bytes: Annotated[
        int | None, Field(description="peak minus weights, gradients and optimizer state; footprints only")
    ]
    peak_bytes: Annotated[Count | None, Field(description="most bytes of tensors held during one update; footprints only")]

    @property
    def tensor_bytes(self) -> int | None:
        """Bytes of weights, gradients and optimizer state, which training holds all the time; None where one is not known."""
        parts = (self.weights_bytes, self.gradients_bytes, self.optimizer_bytes)
        return sum(part for part in parts if part is not None) if None not in parts else None


@dataclass(kw_only=True)
class Memory(Part):
    """Peaks by phase, and the ledger."""

    phases: dict[str, Phase]
    ledger: Ledger
    cells_before: Annotated[
        Count | None,
        Field(description="cells that its process ran before: what they left counts in `rss_peak_gib`; null: an older run"),
    ] = None

    def peak(self, figure: str) -> float | None:
        """The highest of the cell's own phases, in GiB; `figure` is a field of `Phase`."""
        peaks = [getattr(phase, figure) for name, phase in self.phases.items() if name not in OWN_PHASES]
        return max((peak for peak in peaks if peak is not None), default=None)

    def joules(self, figure: str) -> float | None:
        """Of all of the cell's own phases; None where one was not measured. `figure` is a field of `Phase`."""
        each = [getattr(phase, figure) for name, phase in self.phases.items() if name not in OWN_PHASES]
        return None if not each or None in each else sum(each)


@dataclass(kw_only=True)
class Throughput(Part):
    """Rates over the updates after warm-up; null where a run was too short to have any."""

    train_samples_per_second: Amount | None
    train_tokens_per_second: Annotated[Amount | None, Field(description="real tokens, without padding")]
    train_steps_per_second: Amount | None
    step_seconds_median: Amount | None
    step_seconds_p90: Amount | None
    step_seconds: Annotated[list[Amount], Field(description="of each update after warm-up")]
    padding_share: Share | None
    measured_steps: Count
    warmup_steps: Count
    eval_samples_per_second: Amount | None
    generated_tokens_per_second: Amount | None


@dataclass(kw_only=True)
class Flops(Part):
    """FLOPs of an update, and how fast they were done; footprints only."""

    flops_per_step: Annotated[int, Field(ge=0, description="of one update, by torch's FlopCounterMode")]
    achieved_flops_per_second: Amount | None
    matmul_flops_per_second: Annotated[
        float, Field(ge=0, description="of large square matrices in the same precision, in the same process")
    ]
    mfu_percent: Amount | None


@dataclass(kw_only=True)
class WarningRecord(Part):
    """What a library warned of while the cell ran."""

    library: Annotated[str, Field(description="the package whose code warns; `compiled code` does not say which")]
    category: str
    message: Annotated[str, Field(description="one line, without folders and addresses")]
    count: Positive


@dataclass(kw_only=True)
class AuditFinding(Part):
    """What one audit found."""

    name: str
    passed: bool
    detail: str


@dataclass(kw_only=True)
class RankRecord(Part):
    """What one rank did and needed."""

    rss_peak_gib: Annotated[Amount | None, Field(description="the highest of the rank's own phases; so are the next two")]
    allocated_peak_gib: Amount | None
    reserved_peak_gib: Amount | None
    train_samples: Annotated[Count, Field(description="rows that it trained on, over all updates")]
    train_samples_per_second: Annotated[Amount | None, Field(description="of its own rows, after warm-up")]
    train_tokens_per_second: Annotated[Amount | None, Field(description="real tokens, without padding")]


@dataclass(kw_only=True)
class RanksRecord(Part):
    """The processes that shared a cell; all other figures of time and memory are the first one's, rates are of all together."""

    count: Annotated[int, Field(ge=2)]
    backend: Annotated[Literal["gloo", "nccl"], Field(description="what they talk over")]
    fsdp: Annotated[bool, Field(description="each held a part of all weights; bytes are the first one's")] = False
    each: Annotated[list[RankRecord], Field(description="in the order of ranks")]


CALLS = 20  # of each exception's stack: the innermost ones
TRACEBACK_LINES, PRINTED_LINES, LONGEST_LINE = 80, 30, 400
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(kw_only=True)
class CrashRecord(Part):
    """The end of a cell's traceback, and the last lines that it printed."""

    traceback: Annotated[
        list[str], Field(description="its last lines; empty: a sentence says all, or the process left no exception")
    ]
    printed: Annotated[list[str], Field(description="last lines on standard output, standard error and the log")]


def crash_record(error: BaseException | None, printed: Iterable[str]) -> CrashRecord | None:
    """What is kept of an exception, and of all texts that the cell printed; None where there is neither."""
    told = traceback.format_exception(error, limit=-CALLS) if error else []
    last = _last("".join(told), TRACEBACK_LINES), _last("\n".join(printed), PRINTED_LINES)
    return CrashRecord(traceback=last[0], printed=last[1]) if any(last) else None


def _last(text: str, count: int) -> list[str]:
    """The last lines that are not blank, each visible and cut; of a line that was written over, its last state."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in COLOURS.sub("", text).split("\n")]
    return [visible(line.expandtabs(4))[:LONGEST_LINE] for line in lines if line.strip()][-count:]


def plain(value: Any) -> Any:
    """The same value in plain types: numbers as int and float, sequences as lists, dataclasses as dicts, NaN as None.

    No text keeps an absolute path.

    pytest-benchmark silently writes anything else as the string "UNSERIALIZABLE[...]".

    Raises:
        TypeError: for a value that has no plain form.
    """
    kind = type(value)
    if kind is float:  # the common kinds first: a record has a thousand numbers
        return value if math.isfinite(value) else None
    if kind is str:
        return without_places(value)
    if value is None or kind in (int, bool):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in _names(kind)}  # type: ignore[arg-type] # classes are hashable
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return plain(value.item())
    raise TypeError(f"a record cannot hold {value!r} of {kind.__name__}")


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
