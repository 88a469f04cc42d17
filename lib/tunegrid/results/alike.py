"""Says what keeps two records from being compared, as sentences or errors."""

from collections.abc import Iterable

from tunegrid.errors import InputError
from tunegrid.record import Record

ALIKE = ("torch", "transformers", "peft", "bitsandbytes")  # versions that affect speed


def check_alike(records: Iterable[Record]) -> None:
    """Raises InputError if the seeds of a cell differ in more than the seed."""
    facts_by_cell: dict[str, tuple[object, ...]] = {}
    for record in records:
        facts = (record.recipe, record.limits, record.examples and record.examples.rows_hash)
        if facts_by_cell.setdefault(record.cell, facts) != facts:
            raise InputError(f"the runs trained or scored {record.cell} differently, so they are not seeds of one experiment")


def check_rows(before: Record, after: Record) -> None:
    """Raises InputError if two records were scored on different test rows."""
    if before.examples and after.examples and before.examples.rows_hash != after.examples.rows_hash:
        hashes = f"{before.examples.rows_hash} and {after.examples.rows_hash}"
        raise InputError(f"{before.cell}: the two runs scored different test rows ({hashes}) and cannot be paired")


def unlike_machines(before: Record, after: Record) -> str:
    """Why the speed of two records cannot be compared; empty if it can."""
    if not before.device or not after.device:
        return "a run does not name its device"
    facts = [("name", before.device.name, after.device.name), ("threads", before.device.threads, after.device.threads)]
    facts += [("ranks", before.processes, after.processes)]
    facts += [(package, before.versions.get(package), after.versions.get(package)) for package in ALIKE]
    for what, old, new in facts:
        if old != new:
            return f"{what}: {old} and {new}"
    return "measured on a device that others used" if before.device.contended or after.device.contended else ""


def unlike_libraries(before: Record, after: Record) -> str:
    """Which libraries two records do not have in common, by version or by code; empty if none is known to differ."""
    olds, news = before.versions, after.versions
    other = [f"{name} {new}, it was {olds.get(name)}" for name, new in news.items() if olds.get(name) != new]
    for name, digest in after.libraries.items():
        if before.libraries.get(name, digest) != digest and olds.get(name) == news.get(name):
            other.append(f"{name} {news.get(name)} of other code")
    return "; ".join(other)
