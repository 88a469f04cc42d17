"""Says in words what a cell ran with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunegrid.record import Record
from tunegrid.record.parts import DeviceRecord

# Said elsewhere on the page, or of no use to its reader.
LEFT_OUT = ("trainable_params", "total_params", "from_notebook", "ours", "adapter", "generation", "quantization")


# Of a device: what all cells of a run share as a rule, so that it stands once on the page.
SHARED = ("type", "name", "threads", "instructions")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What cells of a run ran in.

    Attributes:
        devices: each in words.
        versions: of each library, all that any cell ran with.
    """

    devices: Sequence[str]
    versions: Mapping[str, Sequence[str]]

    @property
    def one(self) -> bool:
        """Whether all cells share it."""
        return len(self.devices) < 2 and all(len(known) < 2 for known in self.versions.values())


def environment_of(records: Sequence[Record]) -> Environment:
    """The environment of these records; what is not known is left out."""
    devices = dict.fromkeys(device_in_words(record.device) for record in records if record.device)
    versions: dict[str, dict[str, None]] = {}
    for name, version in (pair for record in records for pair in record.versions.items()):
        if version:
            versions.setdefault(name, {})[version] = None
    return Environment(devices=list(devices), versions={name: list(known) for name, known in versions.items()})


def device_in_words(device: DeviceRecord) -> str:
    """A device with its threads and instructions."""
    threads = f"{device.threads} thread{'' if device.threads == 1 else 's'}" if device.threads else ""
    return ", ".join(filter(None, [device.name, threads, device.instructions]))


def settings_of(record: Record, *, alone: bool = True) -> list[tuple[str, str]]:
    """The recipe, then rows, model, device and versions; what does not apply is left out.

    Args:
        record: of the cell.
        alone: with the device and the versions, which a run's cells share as a rule.
    """
    recipe = asdict(record.recipe)
    plain = {name: value for name, value in recipe.items() if name not in LEFT_OUT}
    parts = {name: recipe[name] for name in ("adapter", "generation", "quantization")}
    known = (*plain.items(), *parts.items(), *_circumstances(record, alone))
    return [(name, _words(value)) for name, value in known if _told(value)]


def _circumstances(record: Record, alone: bool) -> list[tuple[str, Any]]:
    data, model, device, training = record.data, record.model, record.device, record.training
    parts: list[tuple[str, Any]] = [("seeds", asdict(record.seeds)), ("at most", asdict(record.limits))]
    if training:
        parts += [
            ("trained in", training.precision),
            ("rows a forward pass", training.micro_batch),
            ("tokens", training.tokens),
        ]
    if data:
        parts += [("rows", asdict(data.rows)), ("rows from", asdict(data.origins)), ("data fingerprint", data.fingerprint)]
        parts += [("data revision", data.revision)]
    if model:
        parts += [("checkpoint", model.checkpoint), ("weights", model.fingerprint), ("architecture", model.architecture)]
        parts += [("new modules", model.adapted_modules)]
    if record.evaluation:
        parts += [("metrics from", record.evaluation.metric_sources)]
    own = asdict(device) if device else {}
    shown = own if alone else {name: value for name, value in own.items() if name not in SHARED}
    return [*parts, ("device", shown), *([("versions", record.versions)] if alone else [])]


def _told(value: Any) -> bool:
    return value not in (None, "", [], (), {}) and not (isinstance(value, dict) and not any(map(_told, value.values())))


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items() if _told(item))
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:,}" if type(value) is int else str(value)
