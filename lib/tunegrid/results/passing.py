"""Decides a cell's status by why it stopped, what audits found and which bounds it missed.

An audit counts in every run, but for those in `TOO_SHORT` where the run is shorter than they need; then the record says so.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tunegrid.grid.cells import Cell
from tunegrid.record import AuditFinding, Record, Status
from tunegrid.results.record_checks import TOGETHER, cross_cell_audits
from tunegrid.results.thresholds import missed

# After so many updates all that trains has moved. LoRA's A moves one update after B; a warm-up may start at a rate of 0; and
# fp16 loses its first updates to overflows, while its scale falls.
FIRST_UPDATES = 10
# Of so many test rows, three standard errors of a difference are about 15 points.
TELLING_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far a run went.

    Attributes:
        updates: that it made.
        planned: that the recipe makes where the command line changes nothing.
        one_pass: of those, until each training row was seen once.
        test_rows: that were scored; None where the command line did not limit them.
    """

    updates: int
    planned: int
    one_pass: int
    test_rows: int | None = None

    def few_updates(self, needed: int) -> str | None:
        """A reason why an audit that needs so many updates may fail; None where the run made them."""
        if self.updates >= min(needed, self.planned):
            return None
        return f"a run of {self.updates} of {self.planned} planned updates may be too short to meet it"

    def few_rows(self, needed: int) -> str | None:
        """The same of test rows."""
        if self.test_rows is None or self.test_rows >= needed:
            return None
        return f"{self.test_rows} test rows may be too few to meet it"


# The audits that need a run of some length, each with what it says of a run; None: it counts.
TOO_SHORT: Mapping[str, Callable[[Extent], str | None]] = {
    "weights_moved": lambda run: run.few_updates(FIRST_UPDATES),
    "generation_not_truncated": lambda run: run.few_updates(run.one_pass),
    "learned_something": lambda run: run.few_updates(run.one_pass) or run.few_rows(TELLING_ROWS),
}


def excuses(findings: Iterable[AuditFinding], extent: Extent) -> dict[str, str]:
    """By audit that failed: why that does not count, where the run was too short to meet it."""
    failed = [finding.name for finding in findings if not finding.passed and finding.name in TOO_SHORT]
    return {name: reason for name in failed if (reason := TOO_SHORT[name](extent))}


def why_not_to_train(cell: Cell, findings: Iterable[AuditFinding]) -> str | None:
    """Why a cell must not train, by what audits found before it does; None where it may.

    A full cell that is wrong from the start would train for hours. A micro one trains, so that its record shows all that
    objects to it; so does one on random tokens, whose rows no audit looks at.
    """
    failed = [sentence_of(finding) for finding in findings if not finding.passed]
    guarded = not (cell.profile.micro or cell.profile.random_weights)
    return f"not trained, {'; '.join(failed)}" if failed and guarded else None


def judged(
    *,
    stopped: str | None,
    findings: Iterable[AuditFinding],
    excused: Collection[str],
    below: Sequence[str],
    unexpected: Sequence[str],
) -> tuple[Status, list[str]]:
    """The status of a cell that came to an end, and a sentence for everything that is wrong.

    Args:
        stopped: why training ended early; then nothing else counts.
        findings: of the audits.
        excused: audits that do not count, since the run was too short to meet them.
        below: bounds that scores do not reach.
        unexpected: what a footprint shows that must not be.
    """
    if stopped:
        return "stopped", [stopped]
    failed = [sentence_of(finding) for finding in findings if not finding.passed and finding.name not in excused]
    sentences = [*failed, *unexpected, *below]
    return ("missed" if sentences else "passed"), sentences


def with_status(record: Record, extent: Extent, unexpected: Sequence[str] = ()) -> Record:
    """The record of a cell that came to an end, with its status and a sentence for everything that is wrong.

    Args:
        record: with all that was measured, scored and found.
        extent: how far the run went.
        unexpected: what a footprint shows that must not be.
    """
    stopped = record.training.stopped if record.training else None
    excused = {} if stopped else excuses(record.audits, extent)
    below = missed(record.scores, record.bounds) if record.evaluation else []
    status, sentences = judged(stopped=stopped, findings=record.audits, excused=excused, below=below, unexpected=unexpected)
    return replace(record, status=status, excused=excused, missed=[located(record, sentence) for sentence in sentences])


def too_short(record: Record) -> list[str]:
    """Sentences on the audits that failed and do not count, since the run was too short to meet them."""
    failed = [finding for finding in record.audits if not finding.passed and finding.name in record.excused]
    return [located(record, f"{sentence_of(finding)}; {record.excused[finding.name]}") for finding in failed]


def sentence_of(finding: AuditFinding) -> str:
    """What an audit that failed saw."""
    return f"audit {finding.name}: {finding.detail}"


def located(record: Record, sentence: str) -> str:
    """The sentence with the cell, the profile and the seed that it is about."""
    return f"{sentence} ({record.cell}, {record.profile}, seed {record.seeds.seed})"


def compared_together(records: Sequence[Record]) -> list[Record]:
    """The records, with what only the cells together show; those that came in stay as they are.

    Only records that finished are compared, those of each profile and seed by themselves. What was said of them in other
    company, as in a shard, is taken back first.
    """
    alone = [_alone(record) if record.finished else record for record in records]
    together = list(alone)
    for run in dict.fromkeys(_run_of(record) for record in alone if record.finished):
        indices = [index for index, record in enumerate(alone) if record.finished and _run_of(record) == run]
        findings = cross_cell_audits([alone[index] for index in indices])
        for index in indices:
            together[index] = _with(alone[index], findings.get(alone[index].cell, ()))
    return together


def contradicts(record: Record) -> bool:
    """Whether another cell of its run shows that a record cannot be right."""
    return any(finding.name in _TOGETHER and not finding.passed for finding in record.audits)


_TOGETHER = {audit.__name__ for audit in TOGETHER}


def _run_of(record: Record) -> tuple[str, int | None]:
    return record.profile, record.seeds.seed


def _with(record: Record, findings: Iterable[AuditFinding]) -> Record:
    """The record with these findings of the cells together."""
    faults = [located(record, sentence_of(finding)) for finding in findings if not finding.passed]
    status: Status = "missed" if faults else record.status
    return replace(record, audits=[*record.audits, *findings], missed=[*record.missed, *faults], status=status)


def _alone(record: Record) -> Record:
    """The record without what an earlier comparison with other cells added."""
    together = [finding for finding in record.audits if finding.name in _TOGETHER]
    added = {located(record, sentence_of(finding)) for finding in together if not finding.passed}
    missed = [sentence for sentence in record.missed if sentence not in added]
    status: Status = "passed" if added and not missed else record.status
    return replace(record, audits=[f for f in record.audits if f not in together], missed=missed, status=status)
