"""Writes a `Record` as JSON, reads JSON as a `Record` that it has checked, and generates the schema of that JSON."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import pydantic_core
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from tunegrid.errors import InputError
from tunegrid.record.checks import contradictions
from tunegrid.record.record import SCHEMA_VERSION, Record, jsonable

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

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


def from_json(data: Mapping[str, Any], source: str = "") -> Record:
    """The record in a row's `extra_info`; `source` names the file in an error.

    Raises:
        InputError: one sentence with the file, the cell, the field and what is wrong with it.
    """
    record, faults = checked(data, source)
    if record is None or faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{_place(data, source)}: {faults[0]}{more}")
    return record


def checked(data: Mapping[str, Any], source: str = "") -> tuple[Record | None, list[str]]:
    """The record, where its fields can be read, and a sentence for everything that is wrong with it.

    Raises:
        InputError: where its schema version is not the current one.
    """
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        way_out = "run its cells again"
        if isinstance(version, int):
            way_out = "update tunegrid" if version > SCHEMA_VERSION else f"read it with tunegrid 0.12, or {way_out}"
        wrong = f"this tunegrid reads schema version {SCHEMA_VERSION}, not {version!r}; {way_out}"
        raise InputError(f"{_place(data, source)}: {wrong}")
    if data.get("profile") == "stock":
        raise InputError(f"{_place(data, source)}: -m stock leaves no record any more: leave this row out, and run it again")
    fields = {name: value for name, value in data.items() if name not in FORMER_FIELDS}
    if isinstance(recipe := fields.get("recipe"), dict):
        fields["recipe"] = {name: value for name, value in recipe.items() if name not in FORMER_RECIPE_FIELDS}
    try:
        # As JSON again: from it pydantic reads a tuple, say, and from a list it does not.
        record = adapter().validate_json(pydantic_core.to_json(fields))
    except ValidationError as error:
        return None, [_sentence(fault) for fault in error.errors(include_url=False)]
    except pydantic_core.PydanticSerializationError as error:  # half of a surrogate pair, which is not UTF-8
        return None, [f"the record cannot be read: {error}"]
    return record, list(contradictions(record))


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """As `json`'s `object_pairs_hook`: raises ValueError for a key that stands twice, of which json would take the last one."""
    read = dict[str, Any]()
    for key, value in pairs:
        if key in read:
            raise ValueError(f"the key {key!r} stands twice in one object")
        read[key] = value
    return read


def _place(data: Mapping[str, Any], source: str) -> str:
    cell = str(data.get("cell", "a record without a cell"))[:60]
    return f"{source}, {cell}" if source else cell


def _sentence(fault: "ErrorDetails") -> str:
    field = ".".join(map(str, fault["loc"]))[:80] or "the record"
    if fault["type"].startswith("missing"):
        return f"{field} is missing"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{field} is not a field of a record"
    text = json.dumps(fault["input"], default=str)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{field} is {shown}, but {fault['msg'].replace('Input should', 'it should', 1)}"


def schema() -> dict[str, Any]:
    """The schema of one record's fields, for readers in other languages."""
    return {"$schema": GenerateJsonSchema.schema_dialect} | adapter().json_schema()
