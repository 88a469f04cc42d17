"""The record of one cell's run: typed, its JSON, its schema. No torch."""

from tunegrid.record.io import from_json, schema, to_json
from tunegrid.record.parts import AuditFinding, ExamplesRecord, crash_record, jsonable
from tunegrid.record.record import SCHEMA_VERSION, Record, Status, data_record, new_record

__all__ = ["SCHEMA_VERSION", "AuditFinding", "ExamplesRecord", "Record", "Status", "crash_record", "data_record"]
__all__ += ["from_json", "jsonable", "new_record", "schema", "to_json"]
