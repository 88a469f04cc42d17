"""Turns Python, NumPy and torch values into those that JSON can hold."""

import math
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from tunegrid.places import without_places


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
