"""Values as JSON can hold them. In: Python, NumPy or torch values. Out: plain ones."""

import math
from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """The same value in plain types: numbers as int and float, sequences as lists, dataclasses as dicts, NaN as None.

    pytest-benchmark silently writes anything else as the string "UNSERIALIZABLE[...]".

    Raises:
        TypeError: for a value that has no plain form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return plain(value.item())
    raise TypeError(f"a record cannot hold {value!r} of {type(value).__name__}")
