"""Writes a `Record` as JSON, reads JSON as a `Record` that it has checked, and generates the schema of that JSON."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pydantic_core
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from tunegrid.errors import InputError
from tunegrid.record.checks import contradictions
from tunegrid.record.record import SCHEMA_VERSION, Record, jsonable

# Of versions 0.16 and 0.17: what they said, this version does not do.
FORMER_FIELDS = frozenset({"distilled", "replaced", "warnings", "merges", "calibration", "shifted", "forgetting", "stock"})
FORMER_RECIPE_FIELDS = frozenset({"from_notebook", "ours"})  # of version 0.17, which named what the study leaves open


@cache
def adapter() -> TypeAdapter[Record]:
    """Pydantic's view of a record; built where the first one is read."""
    return TypeAdapter(Record)


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON, as `extra_info` of a row holds it."""
    return dict(jsonable(record))


def from_json(data: Mapping[str, Any], source: str = "", *, is_old: bool = False) -> Record:
    """The record in a row's `extra_info`, of a file `source`; raises InputError that names file, cell, field and fault.

    One of an earlier version may lack audits.
    """
    cell = str(data.get("cell", "a record without a cell"))[:60]
    place = f"{source}, {cell}" if source else cell
    if (version := data.get("schema_version")) != SCHEMA_VERSION:
        hint = "update tunegrid" if isinstance(version, int) and version > SCHEMA_VERSION else "run its cells again"
        raise InputError(f"{place}: this tunegrid reads schema version {SCHEMA_VERSION}, not {version!r}; {hint}")
    fields = {name: value for name, value in data.items() if name not in FORMER_FIELDS}
    if isinstance(recipe := fields.get("recipe"), dict):
        fields["recipe"] = {name: value for name, value in recipe.items() if name not in FORMER_RECIPE_FIELDS}
    try:
        # As JSON again: from it pydantic reads a tuple, say, and from a list it does not.
        record = adapter().validate_json(pydantic_core.to_json(fields))
        faults = list[str]()
        if not is_old:
            faults.extend(contradictions(record))
    except ValidationError as error:
        messages = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
        faults = [f"{field[:80] or 'the record'}: {message}" for field, message in messages]
    except pydantic_core.PydanticSerializationError as error:  # half of a surrogate pair, which is not UTF-8
        faults = [f"the record cannot be read: {error}"]
    if faults:
        raise InputError(f"{place}: {faults[0]}{f' (and {len(faults) - 1} more)' if faults[1:] else ''}")
    return record


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """As `json`'s `object_pairs_hook`: raises ValueError for a key that stands twice, of which json would take the last one."""
    values = dict[str, Any]()
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is in one object twice")
        values[key] = value
    return values


def schema() -> dict[str, Any]:
    """The schema of one record's fields, for readers in other languages."""
    return {"$schema": GenerateJsonSchema.schema_dialect} | adapter().json_schema()
