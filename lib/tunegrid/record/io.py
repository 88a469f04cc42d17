"""Writes a `Record` as JSON, reads JSON as a `Record` that it has checked, and generates the schema of that JSON."""

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import pydantic_core
from pydantic import TypeAdapter, ValidationError

from tunegrid.errors import InputError
from tunegrid.record.checks import RULES, contradictions
from tunegrid.record.parts import plain
from tunegrid.record.record import SCHEMA_VERSION, Record

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
FORMER_FIELDS = frozenset(  # of version 0.16, in a record and in its parts: what they told of, this version does not do
    {"distilled", "replaced", "shifted.domain", "stock.samples_per_second", "stock.own_samples_per_second", "stock.turns"}
)


@cache
def adapter() -> TypeAdapter[Record]:
    """Pydantic's view of a record; built where the first one is read."""
    return TypeAdapter(Record)


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON, as `extra_info` of a row holds it."""
    data: dict[str, Any] = plain(record)
    return data


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
    _check_version(data.get("schema_version"), _place(data, source))
    data = _without_former(data)
    try:
        record = adapter().validate_json(_as_json(data))
    except ValidationError as error:
        return None, [_sentence(fault) for fault in error.errors(include_url=False)]
    return record, list(contradictions(record))


def _without_former(part: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    return {
        name: _without_former(value, f"{name}.") if name in ("shifted", "stock") and isinstance(value, dict) else value
        for name, value in part.items()
        if f"{path}{name}" not in FORMER_FIELDS
    }


def _check_version(version: Any, place: str) -> None:
    """Raises InputError for every version but the current one, with the way out."""
    if not isinstance(version, int):
        raise InputError(f"{place}: its schema_version is {version!r}; this tunegrid reads {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{place}: schema version {version} is newer than {SCHEMA_VERSION}, which this tunegrid reads; update it"
        )
    if version < SCHEMA_VERSION:
        raise InputError(
            f"{place}: schema version {version} is older than {SCHEMA_VERSION}, which this tunegrid reads; "
            "tunegrid 0.12 reads versions 2 to 4, or run its cells again"
        )


def _as_json(data: Mapping[str, Any]) -> bytes | str:
    """The data as JSON again: pydantic reads a tuple, say, from a JSON array, and not from a list."""
    try:
        return pydantic_core.to_json(data)
    except pydantic_core.PydanticSerializationError:  # half of a surrogate pair, which is not UTF-8
        return json.dumps(data)


def _place(data: Mapping[str, Any], source: str) -> str:
    cell = data.get("cell", "a record without a cell")
    cell = cell if isinstance(cell, str) and cell.isprintable() else _short(cell)
    return f"{source}, {cell}" if source else cell


def _sentence(fault: "ErrorDetails") -> str:
    field = ".".join(map(str, fault["loc"])) or "the record"
    if fault["type"].startswith("missing"):
        return f"{field} is missing"
    if fault["type"] in UNKNOWN:
        return f"{field} is not a field of a record"
    rule = fault["msg"].replace("Input should", "it should", 1)
    return f"{field} is {_short(fault['input'])}, but {rule}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema of one record, for readers in other languages."""
    generated: dict[str, Any] = _without_titles(adapter().json_schema())
    parts = generated.pop("$defs")
    head = {"$schema": DIALECT, "title": "Record"}
    return head | generated | {"allOf": [rule.schema() for rule in RULES], "$defs": parts}


def _without_titles(node: Any) -> Any:
    """The schema without pydantic's titles, which repeat the fields' names."""
    if isinstance(node, dict):
        return {key: _without_titles(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    return [_without_titles(item) for item in node] if isinstance(node, list) else node
