"""What decides whether a cell passed. In: why it stopped, what audits found, which bounds it missed. Out: its status."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from lib.record import Record, Status
from lib.results.record_checks import TOGETHER, across


class Finding(Protocol):
    """What an audit found; `of_learning` where it judges how far training got, not how it was done."""

    @property
    def name(self) -> str:
        """The audit's."""

    @property
    def passed(self) -> bool:
        """Whether it had nothing to object to."""

    @property
    def detail(self) -> str:
        """What it saw."""

    @property
    def of_learning(self) -> bool:
        """Whether a run of a few updates is not held to it."""


def judged(
    *,
    stopped: str | None,
    findings: Iterable[Finding],
    below: Sequence[str],
    unexpected: Sequence[str],
    limited: bool,
) -> tuple[Status, list[str]]:
    """The status of a cell that came to an end, and a sentence for everything that is wrong.

    Args:
        stopped: why training ended early; then nothing else counts.
        findings: of the audits.
        below: bounds that scores do not reach.
        unexpected: what a footprint shows that must not be.
        limited: the command line changed or shortened the run, so that audits of learning do not count.
    """
    if stopped:
        return "stopped", [stopped]
    failed = [finding for finding in findings if not finding.passed and not (finding.of_learning and limited)]
    sentences = [f"audit {finding.name}: {finding.detail}" for finding in failed] + [*unexpected, *below]
    return ("missed" if sentences else "passed"), sentences


def located(record: Record, sentence: str) -> str:
    """The sentence with the cell, the profile and the seed that it is about."""
    return f"{sentence} ({record.cell}, {record.profile}, seed {record.seeds.seed})"


def audit_together(records: Sequence[Record]) -> list[Record]:
    """Add what only the cells together show to their records' audits; return those that a fault turned to `missed`.

    Only records that finished are compared, those of each profile and seed by themselves. What was said of them in smaller
    company, as in a shard, is taken back first.
    """
    finished = [record for record in records if record.finished]
    for record in finished:
        _take_back(record)
    faulty = []
    for run in dict.fromkeys((record.profile, record.seeds.seed) for record in finished):
        alike = [record for record in finished if (record.profile, record.seeds.seed) == run]
        findings_by_cell = across(alike)
        for record in alike:
            findings = findings_by_cell.get(record.cell, [])
            record.audits = [*record.audits, *findings]
            faults = [finding for finding in findings if not finding.passed]
            if faults:
                record.missed += [located(record, f"audit {fault.name}: {fault.detail}") for fault in faults]
                record.status = "missed"
                faulty.append(record)
    return faulty


def _take_back(record: Record) -> None:
    """Remove what an earlier comparison with other cells added."""
    names = {audit.__name__ for audit in TOGETHER}
    told = {located(record, f"audit {f.name}: {f.detail}") for f in record.audits if f.name in names and not f.passed}
    record.audits = [finding for finding in record.audits if finding.name not in names]
    record.missed = [sentence for sentence in record.missed if sentence not in told]
    if told and not record.missed:
        record.status = "passed"
