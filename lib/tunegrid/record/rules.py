"""Holds a record to itself: what its status demands of its other fields, also as JSON schema, and what can be true."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunegrid.grid.profiles import SCORED
from tunegrid.record.record import Record, Status
from tunegrid.record.truths import TRUTHS


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A record of one of these statuses, and of one of these profiles where any are named, has these fields.

    Attributes:
        present: fields that are not null.
        sentences: whether `missed` holds a sentence; None: either.
    """

    statuses: tuple[Status, ...]
    profiles: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    sentences: bool | None = None

    def applies(self, record: Record) -> bool:
        """Whether the record is one of those that the rule is for."""
        return record.status in self.statuses and (not self.profiles or record.profile in self.profiles)

    def schema(self) -> dict[str, Any]:
        """The rule as an `if` and `then` of JSON schema."""
        conditions: dict[str, Any] = {"status": {"enum": list(self.statuses)}}
        conditions |= {"profile": {"enum": list(self.profiles)}} if self.profiles else {}
        fields: dict[str, Any] = {name: {"type": "object"} for name in self.present}
        if self.sentences is not None:
            fields["missed"] = {"minItems": 1} if self.sentences else {"maxItems": 0}
        return {"if": {"properties": conditions, "required": list(conditions)}, "then": {"properties": fields}}


RULES = (
    Rule(
        statuses=("passed", "missed", "begun", "stopped"),
        profiles=(*SCORED, "footprint"),
        present=("device", "model", "parameters", "training", "memory", "throughput"),
    ),
    Rule(statuses=("passed", "missed"), profiles=("stock",), present=("device", "data", "stock")),
    Rule(statuses=("passed", "missed"), profiles=SCORED, present=("data", "evaluation")),
    Rule(statuses=("passed", "missed"), profiles=("footprint",), present=("flops",)),
    Rule(statuses=("begun",), present=("data",)),
    Rule(statuses=("passed",), sentences=False),
    Rule(statuses=("missed", "stopped", "error", "killed", "not run"), sentences=True),
)


def contradictions(record: Record) -> Iterator[str]:
    """A sentence for everything in a record that does not fit its status or its other fields: every reader asks here."""
    for rule in RULES:
        if not rule.applies(record):
            continue
        for name in rule.present:
            if getattr(record, name) is None:
                yield f"{name} is null, but the status is {record.status!r}"
        if rule.sentences is not None and rule.sentences != bool(record.missed):
            told = "holds sentences" if record.missed else "is empty"
            yield f"missed {told}, but the status is {record.status!r}"
    for truth in TRUTHS:
        yield from truth(record)
