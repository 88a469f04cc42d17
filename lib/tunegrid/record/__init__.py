"""The record of one cell's run: typed, its JSON, its schema. No torch."""

from tunegrid.record.io import from_json, schema, to_json
from tunegrid.record.parts import AuditFinding, ExamplesRecord, WarningRecord, crash_record, plain
from tunegrid.record.record import SCHEMA_VERSION, Record, Status, data_record, new_record

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
