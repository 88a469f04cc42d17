"""The figures of records by name: fields as `tunegrid export` writes them, and figures that tables make of these. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunegrid.record import Record, to_json

if TYPE_CHECKING:
    import pandas as pd

MIB = 2**20
BYTES_A_PARAMETER = 4  # trained parameters are fp32
MEASURED = ("scores", "bounds", "parameters", "training", "evaluation", "memory", "throughput", "flops")


def figure_frame(records: Sequence[Record], columns: Mapping[str, str]) -> "pd.DataFrame":
    """A row for each record, under its cell's name, with these columns of figures; NaN for what was not measured."""
    import pandas as pd

    rows = [figures(record) for record in records]
    cells = [record.cell for record in records]
    frame = pd.DataFrame(rows, index=cells, columns=list(columns.values()), dtype=float)
    return frame.set_axis(list(columns), axis=1)


def figures(record: Record) -> dict[str, float | None]:
    """All that a record measured, and the figures that follow; of bytes also MiB."""
    values: dict[str, float | None] = {}
    for name, value in measured(record):
        values[name] = value
        if name.endswith("_bytes"):
            values[name.replace("_bytes", "_mib")] = value / MIB
    return values | _derived(record, values)


def measured(record: Record) -> Iterator[tuple[str, float]]:
    """Every number that a record measured, by its place as in "training.seconds"; no lists."""
    return _leaves({name: part for name, part in to_json(record).items() if name in MEASURED})


def _leaves(content: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, float]]:
    for name, item in content.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{start}{name}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield f"{start}{name}", float(item)


def _derived(record: Record, values: Mapping[str, float | None]) -> dict[str, float | None]:
    """The figures that follow from those measured; None if one of these was not."""
    derived = {
        "score": values.get(f"scores.{record.main_score}"),
        "bound": values.get(f"bounds.{record.main_score}"),
        "peak_gib": record.peak_gib,
        "own_peak_gib": record.own_peak_gib,
        "trained_mib": values.get("memory.ledger.checkpoint_mib"),
    }
    step_seconds = values.get("throughput.step_seconds_median")
    if step_seconds is not None:
        derived["step_ms"] = 1000 * step_seconds
    if not record.device or not record.device.contended:
        derived["own_seconds"] = values.get("training.seconds")
    if record.parameters:
        derived["trainable_share"] = record.parameters.trainable_percent / 100
        if derived["trained_mib"] is None:
            derived["trained_mib"] = BYTES_A_PARAMETER * record.parameters.trainable_params / MIB
    if record.training:
        losses = [loss for loss in record.training.losses if loss is not None]
        if losses:
            derived |= {"losses": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}
    if record.memory:
        tensor_bytes = record.memory.ledger.tensor_bytes
        derived["tensor_mib"] = None if tensor_bytes is None else tensor_bytes / MIB
        derived["gpu_joules"] = record.memory.joules("gpu_energy_joules")
        derived["cpu_joules"] = record.memory.joules("cpu_energy_joules")
        for name, phase in record.memory.phases.items():
            is_gpu = phase.reserved_peak_gib is not None
            derived[f"{name}_peak_gib"] = phase.reserved_peak_gib if is_gpu else phase.rss_peak_gib
    return derived
