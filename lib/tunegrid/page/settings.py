"""Says in words what a cell ran with."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tunegrid.record import Record

# Said elsewhere on the page, or of no use to its reader.
LEFT_OUT = ("trainable_params", "total_params", "from_notebook", "ours", "adapter", "generation", "quantization")


def settings_of(record: Record) -> list[tuple[str, str]]:
    """The recipe, then rows, model, device and versions; what does not apply is left out."""
    recipe = asdict(record.recipe)
    plain = {name: value for name, value in recipe.items() if name not in LEFT_OUT}
    parts = {name: recipe[name] for name in ("adapter", "generation", "quantization")}
    return [(name, _words(value)) for name, value in (*plain.items(), *parts.items(), *_circumstances(record)) if _told(value)]


def _circumstances(record: Record) -> list[tuple[str, Any]]:
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
    return [*parts, ("device", asdict(device) if device else None), ("versions", record.versions)]


def _told(value: Any) -> bool:
    return value not in (None, "", [], (), {}) and not (isinstance(value, dict) and not any(map(_told, value.values())))


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items() if _told(item))
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:,}" if type(value) is int else str(value)
