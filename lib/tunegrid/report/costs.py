"""Estimates what a full-size cell costs before it runs: hours, device memory and downloads.

A footprint run measures the FLOPs and bytes of an update. The speed of GPUs is assumed unless
the footprint comes from the type of device that the cells ask for. Hours and downloads are
estimated as ranges.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunegrid import ROOT
from tunegrid.data.splits import Splits
from tunegrid.errors import InputError
from tunegrid.grid.backbones import own_checkpoint, read_config
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.recipes import EVAL_BATCH, Hyperparameters, Precision
from tunegrid.grid.tasks import Carve, Task
from tunegrid.machine import GIB
from tunegrid.record import Record
from tunegrid.report.tables import MISSING, show
from tunegrid.runs.files import read_list
from tunegrid.words import count, shorten

GUIDE = "benchmarks/guides/full-study-on-a-gpu.md"
COMMITTED = ROOT / "reports" / "cpu-amd-epyc" / "footprint.json"
GB = 10**9
SPLITS = ("train", "validation", "test")
LONGEST_SIZE = 20  # characters that are shown of what a config holds
EQUAL = 0.01  # sizes this close have the same costs: a vocabulary with a few tokens more
# Numbers of rows in the hub's splits, from the data sets' pages. For train, see `Task.train_rows`.
HUB_ROWS: Mapping[str, Mapping[str, int]] = {
    "amazon_polarity": {"test": 400_000},
    "squad": {"validation": 10_570},
    "cnn_dailymail": {"validation": 13_368, "test": 11_490},
}
# JSON bytes of a row, measured on some thousand rows of these kinds; the hub's files are smaller.
ROW_BYTES: Mapping[str, int] = {"amazon_polarity": 810, "squad": 940, "cnn_dailymail": 4150}


class Range(NamedTuple):
    """The low and the high end of an estimate."""

    low: float
    high: float

    def __add__(self, other: object) -> "Range":
        """Adds the low ends and the high ends."""
        assert isinstance(other, Range)
        return Range(self.low + other.low, self.high + other.high)

    def text(self) -> str:
        """Formats both ends, as in "0.4-2.1"; ends below 0.1 are shown as 0.1."""
        return "-".join(f"{end:.0f}" if end >= 10 else f"{max(end, 0.1):.1f}" for end in self)


class Card(NamedTuple):
    """A GPU and its peak TFLOP/s on dense matrices, from NVIDIA's data sheets."""

    name: str
    half: float  # fp16 or bf16, accumulated in fp32
    single: float  # fp32; TF32 is off


CARDS = (Card("H100", 989, 67), Card("A100", 312, 19.5), Card("L4", 121, 30.3))
# Assumptions about a card that has no footprint yet, and about the texts.
PEAK_SHARE = Range(0.1, 0.5)  # of its peak, where arithmetic limits an update
LAUNCH_SECONDS = Range(0.015, 0.06)  # per micro-batch, where launching kernels limits it
TOKEN_SECONDS = Range(0.015, 0.06)  # per token that a batch of `EVAL_BATCH` rows generates
FILL = 0.3  # the smallest share of `max_length` that a batch's longest text fills
BATCH_GAIN = 2.0  # a whole batch raises a CPU's FLOP/s over one row by at most this factor


@dataclass(frozen=True, kw_only=True)
class Work:
    """The computation that a cell needs from its first update to its test scores.

    Attributes:
        train_flops: the FLOPs of all updates if each text has `max_length` tokens.
        scoring_flops: the FLOPs of scoring, under the same assumption.
        generated_steps: the maximum number of tokens generated one after another; 0 if the cell
            generates nothing.
    """

    updates: int
    micro_batches: int
    train_flops: float
    scoring_flops: float
    generated_steps: int
    precision: Precision


def row_tokens(recipe: Hyperparameters) -> int:
    """The number of tokens that FLOPs and activations of a row are taken to be proportional to.

    In attention, they grow faster than that.
    """
    return recipe.max_length + (recipe.max_target_length or 0)


def get_work(recipe: Hyperparameters, rows: Mapping[str, int], footprint: Record) -> Work:
    """The work that a cell requires, given the number of rows in each split."""
    assert footprint.flops, "`read_footprints` returns only records that have FLOPs"
    row_flops = footprint.flops.flops_per_step / footprint.recipe.rows_per_update
    row_flops *= row_tokens(recipe) / row_tokens(footprint.recipe)
    updates = recipe.planned_updates(rows["train"])
    epochs = 1 if recipe.max_steps else recipe.num_train_epochs
    scored_rows = rows["test"]
    if epochs > 1:  # validation chooses among epochs
        scored_rows += epochs * rows["validation"]
    steps = 0
    if recipe.generation:
        steps = math.ceil(scored_rows / EVAL_BATCH) * recipe.generation.max_new_tokens
    return Work(
        updates=updates,
        micro_batches=updates * recipe.gradient_accumulation_steps,
        train_flops=updates * recipe.rows_per_update * row_flops,
        # A backward pass takes as long as the forward pass for an adapter, twice as long for SFT.
        scoring_flops=scored_rows * row_flops / (2 if recipe.adapter else 3),
        generated_steps=steps,
        precision=recipe.precision,
    )


def card_seconds(work: Work, card: Card) -> Range:
    """Estimated seconds of training and scoring on a GPU that has no footprint."""
    peak = 1e12 * (card.single if work.precision == "fp32" else card.half)
    flops = work.train_flops + work.scoring_flops
    launches = work.micro_batches
    low = max(FILL * flops / (peak * PEAK_SHARE.high), launches * LAUNCH_SECONDS.low)
    high = flops / (peak * PEAK_SHARE.low) + launches * LAUNCH_SECONDS.high
    return Range(low, high) + Range(*(work.generated_steps * end for end in TOKEN_SECONDS))


def measured_seconds(work: Work, footprint: Record) -> Range | None:
    """Estimated seconds of training on the footprint's device; None if its speed is unknown.

    On a CPU, the footprint has one row per update, which is slower per row than a batch.
    """
    rate = footprint.flops and footprint.flops.achieved_flops_per_second
    if not rate:
        return None
    gain = 1.0
    if footprint.recipe.rows_per_update == 1:
        gain = BATCH_GAIN
    return Range(FILL * work.train_flops / (gain * rate), work.train_flops / rate)


def memory_bytes(recipe: Hyperparameters, footprint: Record) -> int | None:
    """Bytes of tensors held between updates plus a micro-batch's activations; None if unknown."""
    ledger = footprint.memory.ledger if footprint.memory else None
    if not ledger or ledger.tensor_bytes is None or ledger.activations_bytes is None:
        return None
    rows = recipe.per_device_train_batch_size / footprint.recipe.per_device_train_batch_size
    scale = rows * row_tokens(recipe) / row_tokens(footprint.recipe)
    return round(ledger.tensor_bytes + scale * ledger.activations_bytes)


def hub_rows(cell: Cell) -> dict[str, int] | None:
    """The number of rows that a cell reads from each split on the hub; None if any is unknown."""
    task, profile = cell.task, cell.profile
    sizes = {task.train: task.train_rows, **HUB_ROWS.get(task.folder, {})}
    pool = sizes[task.train]
    test = task.own_test if profile.own_test and task.own_test else task.test
    counts: dict[str, int | None] = {"train": pool}
    for name, source in (("validation", task.validation), ("test", test)):
        if isinstance(source, Carve):
            counts[name] = pool and round(source.share * pool)
            counts["train"] = pool and (counts["train"] or 0) - (counts[name] or 0)
        else:
            counts[name] = sizes.get(source)
    rows = {}
    for name, size in counts.items():
        cap = profile.cap(task.id, name)
        known = [number for number in (cap, size) if number is not None]
        if not known:
            return None
        rows[name] = min(known)
    return rows


def read_footprints(path: Path) -> dict[str, Record]:
    """Reads the footprints in a run's file, by cell.

    Raises InputError if there are none.
    """
    footprints = {
        record.cell: record for record in read_list(path) if record.flops and record.device
    }
    if not footprints:
        hint = "write one with `tunegrid run -m footprint --benchmark-json=FILE`"
        raise InputError(f"{path} has no footprint; {hint}")
    return footprints


def other_size(cell: Cell) -> str | None:
    """The first size of a cell's model that is not the study's, as in "hidden_size 384, not 768".

    The committed footprints do not hold for such a model, unlike those that a user gives.
    """
    folder = own_checkpoint(cell.backbone, cell.profile)
    shape = {**cell.backbone.shape, **(read_config(folder) if folder else {})}
    for name, measured in STUDY.backbones[cell.backbone.id].shape.items():
        size = shape.get(name, measured)
        if not isinstance(measured, int) or name.endswith("_token_id"):
            continue
        if not isinstance(size, int) or not math.isclose(size, measured, rel_tol=EQUAL):
            return f"{name} {shorten(str(size), LONGEST_SIZE)}, not {measured}"
    return None


def download_bytes(cells: Iterable[Cell], footprints: Mapping[str, Record]) -> Range:
    """Bytes of weights and rows to download.

    The low end assumes that the hub's files are half as large as the rows in JSON.
    """
    weights: dict[str, int] = {}
    tasks: dict[str, Task] = {}
    for cell in cells:
        footprint = footprints.get(cell.id)
        if footprint and footprint.parameters and not cell.profile.checkpoint_root:
            size = 4 * footprint.parameters.total_params  # checkpoints are in fp32
            name = cell.backbone.checkpoint
            weights[name] = min(size, weights.get(name, size))
        if cell.uses_hub:
            tasks[cell.task.folder] = cell.task
    rows = 0
    for folder, task in tasks.items():
        row_count = (task.train_rows or 0) + sum(HUB_ROWS.get(folder, {}).values())
        rows += row_count * ROW_BYTES.get(folder, 0)
    total = sum(weights.values())
    return Range(total + rows / 2, total + rows)


class Estimate(NamedTuple):
    """The estimates for one cell, with hours by device name."""

    updates: int
    gib: float | None
    hours: Mapping[str, Range]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The estimates for those cells of a profile that a footprint run covers.

    Attributes:
        devices: names of the devices for which hours are estimated: the footprints' own device if
            `measured`, else the `CARDS`.
        measured: whether the footprints come from the type of device that the cells ask for.
        downloads: bytes of weights and rows to download from the hub.
        cells: the estimates by cell id.
        other_sizes: a size that was not measured, by name of the backbone without an estimate.
    """

    source: Path
    devices: Sequence[str]
    measured: bool
    downloads: Range
    cells: Mapping[str, Estimate]
    other_sizes: Mapping[str, str]

    @property
    def header(self) -> str:
        """The line of column headings."""
        names = "".join(f"  {f'h {name}':>9}" for name in self.devices)
        return f"  {'updates':>7}  {'GiB':>5}{names}"

    def columns(self, cell_id: str) -> str:
        """A cell's estimates as text, with a dash for each unknown one."""
        estimate = self.cells.get(cell_id)
        if estimate is None:
            return f"  {MISSING:>7}  {MISSING:>5}" + f"  {MISSING:>9}" * len(self.devices)
        gib = show(estimate.gib, ".1f")
        hours = ""
        for name in self.devices:
            span = estimate.hours.get(name)
            hours += f"  {span.text() if span else MISSING:>9}"
        return f"  {estimate.updates:>7}  {gib:>5}{hours}"

    def notes(self) -> Iterator[str]:
        """Yields lines on missing estimates, total hours, downloads, and the estimates' basis."""
        for name, difference in self.other_sizes.items():
            hint = f"no --footprint measured it ({GUIDE} says how)"
            yield f"not estimated: this {name} has {difference}, and {hint}"
        sums = []
        for name in self.devices:
            spans = [cell.hours[name] for cell in self.cells.values() if name in cell.hours]
            if spans:
                sums.append(f"{sum(spans, Range(0, 0)).text()} hours on {name}")
        if self.cells:
            hours = ", ".join(sums) or "no hours"
            yield f"estimated for {count(len(self.cells), 'cell')}: {hours}"
        if self.downloads.high:
            low, high = (f"{end / GB:.1f}" for end in self.downloads)
            yield f"to download: {low} to {high} GB"
        if not self.cells:
            return
        yield f"FLOPs and bytes are those of the checkpoints in {self.source}"
        if self.measured:
            yield f"its device is the one in the table; scoring is not included ({GUIDE})"
        else:
            yield f"no card was measured: the hours rest on the assumptions in {GUIDE}"


def estimate_costs(
    cells: Sequence[Cell],
    splits: Mapping[tuple[str, str], Splits | None],
    path: Path | None = None,
) -> Costs:
    """Estimates the costs of a profile's cells from a footprint run, by default the committed one.

    `splits` maps each profile and task to its rows, or to None if they were not read. Raises
    InputError if the file has no footprint.
    """
    footprints = read_footprints(path or COMMITTED)
    device = next(iter(footprints.values())).device
    assert device, "`read_footprints` returns only records that have a device"
    measured = (cells[0].profile.device or "cuda").startswith(device.type)
    estimates = {}
    other_sizes = {}
    for cell in cells:
        footprint = footprints.get(cell.id)
        difference = other_size(cell) if footprint and path is None else None
        if difference:
            other_sizes[cell.backbone.name] = difference
            continue
        rows = cell_rows(cell, splits.get((cell.profile.id, cell.task.id)))
        if footprint and rows:
            estimates[cell.id] = estimate(cell.recipe, rows, footprint, measured)
    return Costs(
        source=path or COMMITTED,
        devices=[device.name] if measured else [card.name for card in CARDS],
        measured=measured,
        downloads=download_bytes(cells, footprints),
        cells=estimates,
        other_sizes=other_sizes,
    )


def estimate(
    recipe: Hyperparameters,
    rows: Mapping[str, int],
    footprint: Record,
    measured: bool,
) -> Estimate:
    """Estimates one cell's costs, with hours on the footprint's own device if `measured`."""
    work = get_work(recipe, rows, footprint)
    seconds: dict[str, Range] = {}
    if not measured:
        seconds = {card.name: card_seconds(work, card) for card in CARDS}
    elif footprint.device and (span := measured_seconds(work, footprint)):
        seconds[footprint.device.name] = span
    held_bytes = memory_bytes(recipe, footprint)
    return Estimate(
        updates=work.updates,
        gib=held_bytes / GIB if held_bytes else None,
        hours={name: Range(*(end / 3600 for end in span)) for name, span in seconds.items()},
    )


def cell_rows(cell: Cell, splits: Splits | None) -> dict[str, int] | None:
    """The number of rows in each split, as read or else as on the hub; None if unknown."""
    if splits is not None:
        return {name: len(getattr(splits, name)) for name in SPLITS}
    return hub_rows(cell) if cell.uses_hub else None
