"""Estimates what a full-size cell costs before it runs: hours, device memory and downloads.

A footprint run measures the FLOPs and bytes of an update. How fast a card computes them is assumed
until the footprint comes from such a card. An estimate is a range from a low to a high value.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunegrid import ROOT
from tunegrid.data.splits import Splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import EVAL_BATCH, Hyperparameters, Precision
from tunegrid.grid.tasks import Carve, Task
from tunegrid.machine import GIB
from tunegrid.record import Record
from tunegrid.report.tables import MISSING, show
from tunegrid.runs.files import read_list
from tunegrid.words import count

COMMITTED = ROOT / "reports" / "cpu-amd-epyc" / "footprint.json"
GB = 10**9
SPLITS = ("train", "validation", "test")
# Rows of the hub's splits as their pages give them; `Task.train_rows` has those of train.
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
        """Adds both ends."""
        assert isinstance(other, Range)
        return Range(self.low + other.low, self.high + other.high)

    def text(self) -> str:
        """Both ends, such as "0.4-2.1"; "0.1" is the least."""
        return "-".join(f"{end:.0f}" if end >= 10 else f"{max(end, 0.1):.1f}" for end in self)


class Card(NamedTuple):
    """A GPU with its peaks in TFLOP/s on dense matrices, from NVIDIA's data sheets."""

    name: str
    half: float  # fp16 or bf16, accumulated in fp32
    single: float  # fp32; TF32 is off


CARDS = (Card("H100", 989, 67), Card("A100", 312, 19.5), Card("L4", 121, 30.3))
# Assumptions about a card that has no footprint yet, and about the texts.
PEAK_SHARE = Range(0.1, 0.5)  # of its peak, where arithmetic limits an update
LAUNCH_SECONDS = Range(0.015, 0.06)  # per micro-batch, where launching kernels limits it
TOKEN_SECONDS = Range(0.015, 0.06)  # per token that a batch of `EVAL_BATCH` rows generates
FILL = 0.3  # the least share of `max_length` that a batch's longest text fills
BATCH_GAIN = 2.0  # the most that a CPU gains in FLOP/s from a whole batch over one row


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a cell computes from its first update to its test scores.

    Attributes:
        train_flops: of all updates, if each text had `max_length` tokens.
        scoring_flops: of all forward passes without a gradient, likewise.
        generated_steps: tokens generated one after the other; 0 if the cell generates nothing.
    """

    updates: int
    micro_batches: int
    train_flops: float
    scoring_flops: float
    generated_steps: int
    precision: Precision


def get_work(recipe: Hyperparameters, rows: Mapping[str, int], footprint: Record) -> Work:
    """The work of a cell with so many rows per split."""
    assert footprint.flops, "`read_footprints` returns only records that have FLOPs"
    row_flops = footprint.flops.flops_per_step / footprint.recipe.rows_per_update
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
        # The backward pass of an adapter takes as long as the forward pass, that of SFT twice.
        scoring_flops=scored_rows * row_flops / (2 if recipe.adapter else 3),
        generated_steps=steps,
        precision=recipe.precision,
    )


def card_seconds(work: Work, card: Card) -> Range:
    """Seconds of training and scoring on a card that has no footprint."""
    peak = 1e12 * (card.single if work.precision == "fp32" else card.half)
    flops = work.train_flops + work.scoring_flops
    launches = work.micro_batches
    low = max(FILL * flops / (peak * PEAK_SHARE.high), launches * LAUNCH_SECONDS.low)
    high = flops / (peak * PEAK_SHARE.low) + launches * LAUNCH_SECONDS.high
    return Range(low, high) + Range(*(work.generated_steps * end for end in TOKEN_SECONDS))


def measured_seconds(work: Work, footprint: Record) -> Range | None:
    """Estimated seconds of training on the footprint's device; None if it has no FLOP/s.

    On a CPU the footprint has one row per update, which is slower per row than a batch.
    """
    rate = footprint.flops and footprint.flops.achieved_flops_per_second
    if not rate:
        return None
    gain = 1.0
    if footprint.recipe.rows_per_update == 1:
        gain = BATCH_GAIN
    return Range(FILL * work.train_flops / (gain * rate), work.train_flops / rate)


def memory_bytes(recipe: Hyperparameters, footprint: Record) -> int | None:
    """Bytes of the tensors held between updates, plus the activations of a micro-batch."""
    ledger = footprint.memory.ledger if footprint.memory else None
    if not ledger or ledger.tensor_bytes is None or ledger.activations_bytes is None:
        return None
    rows = recipe.per_device_train_batch_size / footprint.recipe.per_device_train_batch_size
    return round(ledger.tensor_bytes + rows * ledger.activations_bytes)


def hub_rows(cell: Cell) -> dict[str, int] | None:
    """Rows of each split that a cell reads from the hub; None if a size is not known."""
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
    """The footprint of each cell in a run's file.

    Raises InputError if the file has none.
    """
    footprints = {
        record.cell: record for record in read_list(path) if record.flops and record.device
    }
    if not footprints:
        hint = "write one with `tunegrid run -m footprint --benchmark-json=FILE`"
        raise InputError(f"{path} has no footprint; {hint}")
    return footprints


def download_bytes(cells: Iterable[Cell], footprints: Mapping[str, Record]) -> Range:
    """Bytes of weights and of rows to download; the hub's files of rows may be half as large."""
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
    """What one cell will take; `hours` by the device's name."""

    updates: int
    gib: float | None
    hours: Mapping[str, Range]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Estimates for those cells of a profile that a footprint run covers, by cell id.

    Attributes:
        devices: names of the devices for which hours are estimated: the one that measured the
            footprints if the cells ask for its type, else `CARDS`.
        measured: whether the cells ask for the type of device that measured the footprints.
        downloads: bytes of weights and rows that come from the hub.
    """

    source: Path
    devices: Sequence[str]
    measured: bool
    downloads: Range
    cells: Mapping[str, Estimate]

    @property
    def header(self) -> str:
        """The names of the columns."""
        names = "".join(f"  {f'h {name}':>9}" for name in self.devices)
        return f"  {'updates':>7}  {'GiB':>5}{names}"

    def columns(self, cell_id: str) -> str:
        """A cell's columns, with a dash where nothing is known."""
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
        """Yields the sums, and what the estimates rest on."""
        sums = []
        for name in self.devices:
            spans = [cell.hours[name] for cell in self.cells.values() if name in cell.hours]
            if spans:
                sums.append(f"{sum(spans, Range(0, 0)).text()} hours on {name}")
        yield f"estimated for {count(len(self.cells), 'cell')}: {', '.join(sums) or 'no hours'}"
        if self.downloads.high:
            low, high = (f"{end / GB:.1f}" for end in self.downloads)
            yield f"to download: {low} to {high} GB"
        yield f"updates, FLOPs and bytes are those of {self.source}"
        guide = "benchmarks/guides/full-study-on-a-gpu.md"
        if self.measured:
            yield f"its device is the one in the table; scoring is not included ({guide})"
        else:
            yield f"no card was measured: the hours rest on the assumptions in {guide}"


def estimate_costs(
    cells: Sequence[Cell],
    splits: Mapping[tuple[str, str], Splits | None],
    path: Path | None = None,
) -> Costs:
    """Estimates the costs of cells of one profile by a footprint run, by default the committed one.

    `splits` has the rows of each profile and task that were read. Raises InputError if the file has
    no footprint.
    """
    path = path or COMMITTED
    footprints = read_footprints(path)
    device = next(iter(footprints.values())).device
    assert device, "`read_footprints` returns only records that have a device"
    measured = (cells[0].profile.device or "cuda").startswith(device.type)
    estimates = {}
    for cell in cells:
        footprint = footprints.get(cell.id)
        rows = cell_rows(cell, splits.get((cell.profile.id, cell.task.id)))
        if footprint and rows:
            estimates[cell.id] = estimate(cell.recipe, rows, footprint, measured)
    return Costs(
        source=path,
        devices=[device.name] if measured else [card.name for card in CARDS],
        measured=measured,
        downloads=download_bytes(cells, footprints),
        cells=estimates,
    )


def estimate(
    recipe: Hyperparameters,
    rows: Mapping[str, int],
    footprint: Record,
    measured: bool,
) -> Estimate:
    """Estimates one cell; `measured` takes hours from the footprint's own device."""
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
    """Rows of each split: those that were read, or the hub's; None if they are not known."""
    if splits is not None:
        return {name: len(getattr(splits, name)) for name in SPLITS}
    return hub_rows(cell) if cell.uses_hub else None
