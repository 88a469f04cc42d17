"""Generates what `tunegrid export --schema` prints, a JSON schema (draft 2020-12), from the record's classes and rules."""

from typing import Any

from tunegrid.record.reading import adapter
from tunegrid.record.rules import RULES

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
