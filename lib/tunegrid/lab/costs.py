"""Compares the hours and memory that `--list-cells` predicts with those measured in training.

The footprints must come from the device that trained the cells. Prints a Markdown table.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.report.costs import estimate, read_footprints
from tunegrid.report.tables import show
from tunegrid.runs.files import read_list

HEADER = (
    "cell",
    "seed",
    "updates",
    "hours, predicted",
    "hours, measured",
    "of the high end",
    "GiB, predicted",
    "GiB, measured",
)


def cost_rows(
    records: Iterable[Record], footprints: Mapping[str, Record]
) -> Iterator[tuple[str, ...]]:
    """Yields a table row for each trained record whose cell has a footprint.

    Measured memory is the peak of the training phase: the process's on a CPU, the allocator's on a
    GPU. Raises InputError if the footprint was measured on another device.
    """
    for record in records:
        footprint = footprints.get(record.cell)
        training, data, memory = record.training, record.data, record.memory
        if not (footprint and footprint.device and training and data and memory):
            continue
        device = footprint.device.name
        if not record.device or record.device.name != device:
            other = record.device.name if record.device else "an unknown device"
            raise InputError(f"{record.cell} trained on {other}, not on {device}")
        predicted = estimate(record.recipe, data.rows, footprint, measured=True)
        if device not in predicted.hours:  # the footprint has no speed
            continue
        low, high = predicted.hours[device]
        hours = training.seconds / 3600
        phase = memory.phases["train"]
        yield (
            record.cell,
            str(record.seeds.seed),
            f"{training.updates} of {predicted.updates}",
            f"{low:.2f}-{high:.2f}",
            f"{hours:.2f}",
            f"{100 * hours / high:.0f} %",
            show(predicted.gib, ".2f"),
            show(phase.allocated_peak_gib or phase.rss_peak_gib, ".2f"),
        )


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 0."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab costs", description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN.json", help="runs of trained cells")
    text = "the same device's footprints of these cells"
    add("--footprint", type=Path, required=True, metavar="RUN.json", help=text)
    options = parser.parse_args(arguments)
    footprints = read_footprints(options.footprint)
    lines = [HEADER, ("---",) * len(HEADER)]
    for path in options.runs:
        lines += cost_rows(read_list(path), footprints)
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0
