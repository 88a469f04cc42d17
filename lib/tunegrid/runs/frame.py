"""Collects the figures of records by name for `tunegrid export` and tables. Needs no torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunegrid.record import Record, to_json

if TYPE_CHECKING:
    import pandas as pd

MIB = 2**20
BYTES_A_PARAMETER = 4  # trained parameters are fp32
MEASURED = (
    "scores",
    "bounds",
    "parameters",
    "training",
    "evaluation",
    "memory",
    "throughput",
    "flops",
)


def figure_frame(records: Sequence[Record], columns: Mapping[str, str]) -> "pd.DataFrame":
    """A frame with one row per record, indexed by cell; NaN means that a figure was not measured.

    `columns` maps the frame's column names to names of `figures`.
    """
    import pandas as pd

    rows = [figures(record) for record in records]
    cells = [record.cell for record in records]
    frame = pd.DataFrame(rows, index=cells, columns=list(columns.values()), dtype=float)
    return frame.set_axis(list(columns), axis=1)


def figures(record: Record) -> dict[str, float | None]:
    """A record's measured figures and figures derived from them, by name; bytes also in MiB."""
    values: dict[str, float | None] = {}
    for name, value in measured(record):
        values[name] = value
        if name.endswith("_bytes"):
            values[name.replace("_bytes", "_mib")] = value / MIB
    values["score"] = record.scores.get(record.main_score)
    values["bound"] = record.bounds.get(record.main_score)
    values["peak_gib"] = record.peak_gib
    values["own_peak_gib"] = record.own_peak_gib
    values["trained_mib"] = values.get("memory.ledger.checkpoint_mib")
    if not record.device or not record.device.contended:
        values["own_seconds"] = values.get("training.seconds")
    if record.parameters:
        values["trainable_share"] = record.parameters.trainable_percent / 100
        if values["trained_mib"] is None:
            values["trained_mib"] = BYTES_A_PARAMETER * record.parameters.trainable_params / MIB
    if record.throughput and record.throughput.step_seconds_median is not None:
        values["step_ms"] = 1000 * record.throughput.step_seconds_median
    losses = []
    if record.training:
        losses = [loss for loss in record.training.losses if loss is not None]
    if losses:
        values |= {"losses": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}
    if record.memory:
        tensor_bytes = record.memory.ledger.tensor_bytes
        values["tensor_mib"] = None if tensor_bytes is None else tensor_bytes / MIB
        values["gpu_joules"] = record.memory.joules("gpu_energy_joules")
        values["cpu_joules"] = record.memory.joules("cpu_energy_joules")
        for name, phase in record.memory.phases.items():
            peak = phase.reserved_peak_gib
            values[f"memory.phases.{name}.peak_gib"] = phase.rss_peak_gib if peak is None else peak
    return values


def measured(record: Record) -> Iterator[tuple[str, float]]:
    """Yields the dotted name ("training.seconds") and value of each measurement outside lists."""
    return _leaves({name: item for name, item in to_json(record).items() if name in MEASURED})


def _leaves(content: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, float]]:
    for name, item in content.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{start}{name}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield f"{start}{name}", float(item)
