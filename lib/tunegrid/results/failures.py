"""Tells why records did not pass, and puts those together that failed by the same causes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.record.checks import below_bounds
from tunegrid.results.table import SHOWN, count, joined, some

# How a cell can go wrong, in the order in which causes are told; failed audits come before all of them, by name.
BOUND, FIGURES, ERROR, KILLED, STOPPED, NOT_RUN, UNFINISHED = (
    "missed a bound",
    "had wrong figures",
    "broke off",
    "lost its process",
    "stopped early",
    "did not run",
    "did not finish",
)
AUDIT = "failed audit "  # and its name
CAUSES = (BOUND, FIGURES, ERROR, KILLED, STOPPED, NOT_RUN, UNFINISHED)
BY_STATUS = {"stopped": STOPPED, "error": ERROR, "killed": KILLED, "not run": NOT_RUN}
NAMED = 30  # cells that a line of a cause names


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Records that went wrong by the same causes.

    Attributes:
        causes: in the order in which they are told.
        records: in the run's order.
    """

    causes: tuple[str, ...]
    records: Sequence[Record]

    @property
    def cells(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(record.cell for record in self.records))

    @property
    def name(self) -> str:
        """All causes, as "failed audits base_frozen and dropout_drops and missed a bound"."""
        audits = [cause.removeprefix(AUDIT) for cause in self.causes if cause.startswith(AUDIT)]
        failed = [f"{AUDIT if len(audits) == 1 else 'failed audits '}{joined(audits)}"] if audits else []
        return " and ".join([*failed, *(cause for cause in self.causes if not cause.startswith(AUDIT))])

    @property
    def title(self) -> str:
        """How many cells, and by what."""
        return f"{count(len(self.cells), 'cell')} {self.name}"


def causes_of(record: Record) -> list[str]:
    """Why a record did not pass; empty where it did."""
    if record.status in ("passed", "reported") or (record.status == "begun" and not record.missed):
        return []
    audits = [
        f"{AUDIT}{name}" for name in objecting(record) if any(f"audit {name}: " in sentence for sentence in record.missed)
    ]
    if record.status == "missed":
        others = [FIGURES] if sentences_of(record, FIGURES) else []
        return audits + ([BOUND] if below_bounds(record.scores, record.bounds) else others) or [FIGURES]
    return audits or [BY_STATUS.get(record.status, UNFINISHED)]


def by_cause(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """The records that went wrong by cause: audits first, the one that most cells failed before the others."""
    bad: dict[str, list[Record]] = {}
    for record in records:
        for cause in causes_of(record):
            bad.setdefault(cause, []).append(record)
    order = {cause: index for index, cause in enumerate(CAUSES)}
    return sorted(bad.items(), key=lambda item: (order.get(item[0], -1), -len(cells_of(item[1]))))


def failures_of(records: Iterable[Record]) -> list[Failure]:
    """The same with causes of the same records together."""
    together: dict[tuple[int, ...], Failure] = {}
    for cause, bad in by_cause(records):
        same = tuple(map(id, bad))
        causes = together[same].causes if same in together else ()
        together[same] = Failure(causes=(*causes, cause), records=bad)
    return list(together.values())


def said_of(record: Record, cause: str) -> str:
    """The first that a record says of what it failed by."""
    return next(iter(sentences_of(record, cause)), f"{record.cell} says nothing more")


def sentences_of(record: Record, cause: str) -> list[str]:
    """All that a record says of what it failed by: of an audit its own sentence, of any other cause what no audit says."""
    if cause.startswith(AUDIT):
        return [sentence for sentence in record.missed if f"audit {cause.removeprefix(AUDIT)}: " in sentence]
    return [sentence for sentence in record.missed if not any(f"audit {name}: " in sentence for name in objecting(record))]


def told_by_cause(records: Iterable[Record]) -> Iterator[str]:
    """Lines on what failed: cells with their causes, and below them what they say; of more than three what one says."""
    for failure in failures_of(sorted(records, key=lambda record: study_place(record.cell))):
        yield f"{failure.title}: {some(failure.cells, NAMED)}"
        few, most = (failure.records, None) if len(failure.records) <= SHOWN else (failure.records[:1], 1)
        for record in few:
            for cause in failure.causes:
                yield from (f"  {sentence}" for sentence in sentences_of(record, cause)[:most])


def objecting(record: Record) -> list[str]:
    """Names of the audits that failed."""
    return [audit.name for audit in record.audits if not audit.passed]


def cells_of(records: Iterable[Record]) -> set[tuple[str, str]]:
    """Profile and cell, each once."""
    return {(record.profile, record.cell) for record in records}
