"""The record of one cell's run: typed, its JSON, its schema. No torch."""

from tunegrid.record.crash import crash_record
from tunegrid.record.parts import AuditFinding, ExamplesRecord, WarningRecord
from tunegrid.record.plain import plain
from tunegrid.record.reading import from_json, to_json
from tunegrid.record.record import SCHEMA_VERSION, Record, Status, data_record, new_record
from tunegrid.record.schema import schema

__all__ = [
    "SCHEMA_VERSION",
    "AuditFinding",
    "ExamplesRecord",
    "Record",
    "Status",
    "WarningRecord",
    "crash_record",
    "data_record",
    "from_json",
    "new_record",
    "plain",
    "schema",
    "to_json",
]
