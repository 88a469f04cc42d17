"""Converts a `Record` to JSON and back, checks it, and generates the schema of that JSON."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pydantic_core
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from tunegrid.errors import InputError
from tunegrid.record.checks import contradictions
from tunegrid.record.record import SCHEMA_VERSION, Record, jsonable

# Fields that versions 0.16 and 0.17 wrote and that this version ignores.
FORMER_FIELDS = frozenset(
    {
        "distilled",
        "replaced",
        "warnings",
        "merges",
        "calibration",
        "shifted",
        "forgetting",
        "stock",
    }
)
FORMER_RECIPE_FIELDS = frozenset({"from_notebook", "ours"})


@cache
def adapter() -> TypeAdapter[Record]:
    """Pydantic's adapter for records, built on first use."""
    return TypeAdapter(Record)


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON, for the `extra_info` of a pytest-benchmark row."""
    return dict(jsonable(record))


def from_json(data: Mapping[str, Any], source: str = "", *, is_old: bool = False) -> Record:
    """Reads a record from a row's `extra_info`; `is_old` skips the check for contradictions.

    Raises InputError with a sentence that names the file (`source`), the cell and the fault.
    """
    cell = str(data.get("cell", "a record without a cell"))[:60]
    name = f"{source}, {cell}" if source else cell
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        is_newer = isinstance(version, int) and version > SCHEMA_VERSION
        hint = "update tunegrid" if is_newer else "run its cells again"
        cause = f"this tunegrid reads schema version {SCHEMA_VERSION}, not {version!r}"
        raise InputError(f"{name}: {cause}; {hint}")
    fields = _without(data, FORMER_FIELDS)
    if isinstance(fields.get("recipe"), dict):
        fields["recipe"] = _without(fields["recipe"], FORMER_RECIPE_FIELDS)
    try:
        # The fields become JSON again because pydantic's strict mode accepts, for example, a tuple
        # from JSON but not from a list.
        record = adapter().validate_json(pydantic_core.to_json(fields))
        faults = list[str]()
        if not is_old:
            faults.extend(contradictions(record))
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_url=False):
            field = ".".join(map(str, fault["loc"]))[:80]
            faults.append(f"{field or 'the record'}: {fault['msg']}")
    except pydantic_core.PydanticSerializationError as error:  # a lone surrogate is not UTF-8
        faults = [f"the record cannot be read: {error}"]
    if faults:
        more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        raise InputError(f"{name}: {faults[0]}{more}")
    return record


def _without(values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a dict from a JSON object's pairs; raises ValueError for a duplicate key."""
    values = dict[str, Any]()
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is in one object twice")
        values[key] = value
    return values


def schema() -> dict[str, Any]:
    """The JSON Schema of a record, for programs in other languages that read it."""
    return {"$schema": GenerateJsonSchema.schema_dialect} | adapter().json_schema()
