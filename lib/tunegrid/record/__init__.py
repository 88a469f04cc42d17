"""The typed record of one cell's run, its JSON and its schema. Needs no torch."""

from tunegrid.record.io import from_json, schema, to_json
from tunegrid.record.record import (
    AuditFinding,
    ExamplesRecord,
    Record,
    Status,
    crash_record,
    data_record,
    new_record,
)

__all__ = [
    "AuditFinding",
    "ExamplesRecord",
    "Record",
    "Status",
    "crash_record",
    "data_record",
    "from_json",
    "new_record",
]
__all__ += ["schema", "to_json"]
