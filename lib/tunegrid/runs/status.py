"""Derives a cell's status from early stops, audits and bounds, and explains failures.

A failed audit that needs a longer or larger run, or is a known fault of a library, does not count,
and the record says so.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tunegrid.grid.cells import STUDY_IDS, Cell
from tunegrid.grid.recipes import CONFIRMING, FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import AuditFinding, Record, Status
from tunegrid.record.checks import NEED_LENGTH, below_bounds, failed_audits, missed_bounds_alone
from tunegrid.runs.known_faults import find_known_fault
from tunegrid.words import count, count_text, phrase, some

# After this many updates, all trainable weights have moved. LoRA's A moves one update after B, a
# warm-up may start at a rate of 0, and fp16 loses its first updates to overflow until its loss
# scale has fallen.
FIRST_UPDATES = 10
TELLING_ROWS = 100  # three standard errors of a difference on 100 rows are about 15 points
# Wrong rows that two honest cells may share by chance. On the quick cells, over five seeds, they
# shared at most two of 512.
SHARED_BY_LUCK = 30
# Audits that more training can turn into a pass
LEARNING = ("generation_not_truncated", "predictions_not_collapsed", "learned_something")
OTHER_CURES = "another learning rate, or correct labels"
ENOUGH_UPDATES = 300  # the fewest that advice on a user's quick cell suggests
TOGETHER = ("distinct_results", "same_rows_in_triple")  # audits that compare a run's cells


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The size of a run."""

    updates: int
    planned: int  # updates that the recipe makes if the command line changes nothing
    one_pass: int  # updates until each training row has been seen once
    test_rows: int | None = None  # scored rows; None if the command line did not limit them

    def excuse(self, audit: str) -> str:
        """The reason why a run this small may fail an audit; empty if the audit counts."""
        needed = FIRST_UPDATES if audit == "weights_moved" else self.one_pass
        if audit in NEED_LENGTH and self.updates < min(needed, self.planned):
            made = f"{self.updates} of {self.planned} planned updates"
            return f"a run of {made} may be too short to pass it"
        if audit != "learned_something" or self.test_rows is None or self.test_rows >= TELLING_ROWS:
            return ""
        return f"{self.test_rows} test rows may be too few to pass it"


def reason_not_to_train(cell: Cell, findings: Iterable[AuditFinding]) -> str | None:
    """A sentence about failed audits that keep a cell from training; None if it may train.

    A full cell that is wrong from the start would waste hours. A micro cell trains anyway, so that
    its record shows all faults. So does a cell on random tokens, whose rows no audit checks.
    """
    if cell.profile.micro or cell.profile.random_weights:
        return None
    failed = failed_audits(findings)
    return f"not trained, {'; '.join(failed)}" if failed else None


def add_status(record: Record, extent: Extent, unexpected: Sequence[str] = ()) -> Record:
    """Adds to an ended cell's record its status and a sentence for each fault that counts."""
    if record.training and record.training.stopped:  # no other fault counts then
        sentence = locate(record, record.training.stopped)
        return replace(record, status="stopped", excused={}, known={}, missed=[sentence])
    excused = {}
    known = {}
    for finding in _failed_findings(record):
        name = finding.name
        excuse = extent.excuse(name)
        fault = find_known_fault(record, name)
        if excuse:
            excused[name] = excuse
        elif fault:
            known[name] = fault.reason
    record = replace(record, excused=excused, known=known)
    misses = below_bounds(record.scores, record.bounds) if record.evaluation else []
    faults = [*audit_sentences(record), *unexpected, *misses]
    return _end_record(record, [locate(record, sentence) for sentence in faults])


def _failed_findings(record: Record) -> list[AuditFinding]:
    return [finding for finding in record.audits if not finding.passed]


def audit_sentences(record: Record) -> list[str]:
    """A sentence for each failed audit that counts.

    The first sentence about an audit that more training may cure ends with advice.
    """
    sentences = []
    advice = more_training(record)
    for finding in record.audits:
        for sentence in failed_audits([finding], record.uncounted):
            if advice and finding.name in LEARNING:
                sentence = f"{sentence}; {advice}"
                advice = ""
            sentences.append(sentence)
    return sentences


def more_training(record: Record) -> str:
    """Advice to train a user's quick or full cell longer or differently; empty for other cells."""
    if record.cell in STUDY_IDS or record.training is None:
        return ""
    if record.profile == FULL_PROFILE.id:
        epochs = 2 * record.recipe.num_train_epochs
        more = f"more epochs (num_train_epochs={epochs} in its recipe)"
        return f"it may need {more}, {OTHER_CURES}"
    if record.profile == QUICK_PROFILE.id:
        made = record.training.updates
        setting = f'quick={{"max_steps": {max(ENOUGH_UPDATES, 2 * made)}}}'
        more = f"more than {made} updates ({setting} in its task or recipe)"
        return f"it may need {more}, {OTHER_CURES}"
    return ""


def _end_record(record: Record, sentences: list[str]) -> Record:
    """The record with these sentences and the status that follows from them.

    A finished record with faults is *audit* if an audit failed and no bound was missed; otherwise
    it is *missed*.
    """
    is_begun = record.first_updates is not None
    status: Status
    if not sentences:
        status = "known" if record.known else "passed"
        if is_begun:
            status = "begun"
    elif is_begun:
        status = "failed"
    elif below_bounds(record.scores, record.bounds):
        status = "missed"
    else:
        status = "audit" if failed_audits(record.audits, record.uncounted) else "missed"
    return replace(record, missed=sentences, status=status)


def too_short(record: Record) -> list[str]:
    """A sentence for each failed audit that does not count because the run was too small."""
    sentences = []
    for finding in _failed_findings(record):
        if finding.name in record.excused:
            fault = failed_audits([finding])[0]
            sentences.append(locate(record, f"{fault}; {record.excused[finding.name]}"))
    return sentences


def known_faults(record: Record) -> list[str]:
    """A sentence for each failed audit that does not count because the library's fault is known."""
    sentences = []
    for finding in _failed_findings(record):
        if finding.name in record.known:
            fault = failed_audits([finding])[0]
            sentences.append(locate(record, f"{fault}; known: {record.known[finding.name]}"))
    return sentences


def locate(record: Record, sentence: str) -> str:
    """The sentence followed by the record's cell, profile and seed."""
    return f"{sentence} ({record.cell}, {record.profile}, seed {record.seeds.seed})"


def cell_status(seeds: Sequence[Record]) -> Status:
    """The first status among a cell's seeds that is a failure.

    If there is none, returns *known*, *unconfirmed* or *passed*, whichever a seed has first.
    """
    statuses: list[Status] = [record.status for record in seeds]
    mild: tuple[Status, ...] = ("known", "unconfirmed", "passed")
    for status in statuses:
        if status not in mild:
            return status
    return next((status for status in mild if status in statuses), "passed")


def weigh_misses(records: Sequence[Record]) -> list[Record]:
    """Sets the status *unconfirmed* on misses that a second training run did not confirm.

    If either the first or the second training run of a seed passed, bounds that the other run
    missed are unconfirmed.
    """
    by_case = {(record.profile, record.cell, record.seeds.seed): record for record in records}
    absolved_ids = set()
    for record in records:
        confirms = record.seeds.confirms
        first = None if confirms is None else by_case.get((record.profile, record.cell, confirms))
        if first and record.status == "passed":
            absolved_ids.add(id(first))
        if first and first.status == "passed":
            absolved_ids.add(id(record))
    weighed = []
    for record in records:
        is_absolved = id(record) in absolved_ids and missed_bounds_alone(record)
        weighed.append(replace(record, status="unconfirmed") if is_absolved else record)
    return weighed


def first_trainings(records: Iterable[Record]) -> list[Record]:
    """The records, except those of second training runs."""
    return [record for record in records if record.seeds.confirms is None]


def unconfirmed_misses(records: Sequence[Record], older: Sequence[Record] = ()) -> Iterator[str]:
    """Yields a sentence for each cell with an unconfirmed miss; its counts include `older` runs."""
    unconfirmed = [record for record in records if record.status == "unconfirmed"]
    finished = [record for record in (*records, *older) if record.finished]
    for case in dict.fromkeys((record.profile, record.cell) for record in unconfirmed):
        runs = [record for record in finished if (record.profile, record.cell) == case]
        misses = [record for record in runs if record.status == "unconfirmed"]
        number = sum(record.seeds.confirms is None for record in runs)
        history = f"; {len(misses)} of {count(number, 'seed')}" if number > 1 else ""
        first = misses[0]
        second_seed = first.seeds.confirms
        if second_seed is None:
            second_seed = (first.seeds.seed or 0) + CONFIRMING
        texts = "; ".join(below_bounds(first.scores, first.bounds))
        miss = f"{first.cell} missed a bound at seed {first.seeds.seed} ({texts})"
        yield f"{miss}, reached at {second_seed}: not confirmed{history}"


# Why cells failed

AUDIT = "failed audit "  # the audit's name follows
BOUND = "missed a bound"
FIGURES = "had wrong figures"
# Causes by status, for cells that did not finish. They rank after audits, bounds and figures.
ENDS = {
    "error": "broke off",
    "killed": "lost its process",
    "stopped": "stopped early",
    "not run": "did not run",
    "unfinished": "did not finish",
}


class FailedCells(NamedTuple):
    """Records that failed for the same causes."""

    causes: list[str]
    records: Sequence[Record]

    @property
    def cells(self) -> list[str]:
        """The distinct cells of the records."""
        return list(dict.fromkeys(record.cell for record in self.records))

    @property
    def name(self) -> str:
        """The causes, as in "failed audits base_frozen and dropout_drops and missed a bound"."""
        audits = []
        causes = []
        for cause in self.causes:
            if cause.startswith(AUDIT):
                audits.append(cause.removeprefix(AUDIT))
            else:
                causes.append(cause)
        if audits:
            causes.insert(0, f"failed audit{'s' if audits[1:] else ''} {phrase(audits)}")
        return " and ".join(causes)

    @property
    def title(self) -> str:
        """The number of cells and the causes."""
        return f"{count(len(self.cells), 'cell')} {self.name}"

    def headline(self, total: int) -> str:
        """A line with the first cell's fault, the number of cells, and the causes."""
        cause = self.causes[0]
        sentences = []
        for record in self.records:
            sentence = next(iter(cause_sentences(record, cause)), "no detail is known")
            sentence = sentence.removesuffix(locate(record, ""))
            sentences.append(sentence.removeprefix(f"audit {cause.removeprefix(AUDIT)}: "))
        number = count_text(len(self.cells), total, "cell")
        first = self.cells[0]
        if cause.startswith(AUDIT):
            cells = some(self.cells) if len(set(sentences)) == 1 else f"as {first}"
            return f"{sentences[0]} ({number}, {cells}; {self.name})"
        likewise = f"; likewise {some(self.cells[1:])}" if self.cells[1:] else ""
        detail = f"{first}: {sentences[0]}{self.second_training}{likewise}"
        return f"{number} {self.name} ({detail})"

    @property
    def second_training(self) -> str:
        """A clause if the first cell's second training run failed, too; otherwise empty."""
        for record in self.records:
            if record.cell == self.cells[0] and record.seeds.confirms is not None:
                return f", confirmed by a second training at seed {record.seeds.seed}"
        return ""


def cause_sentences(record: Record, cause: str) -> list[str]:
    """A record's sentences about the audit that `cause` names.

    If it names none, returns the sentences that are not about failed audits.
    """
    if cause.startswith(AUDIT):
        start = f"audit {cause.removeprefix(AUDIT)}: "
        return [sentence for sentence in record.missed if start in sentence]
    return _without_audits(record.missed, [finding.name for finding in _failed_findings(record)])


def _without_audits(sentences: Iterable[str], names: Collection[str]) -> list[str]:
    """The sentences that are not about any of these audits."""
    remaining = list(sentences)
    for name in names:
        remaining = [sentence for sentence in remaining if f"audit {name}: " not in sentence]
    return remaining


def _causes(record: Record) -> list[str]:
    if record.unharmed or record.status in ("known", "reported"):
        return []
    if record.status == "begun" and not record.missed:
        return []
    audits = list(dict.fromkeys(f"{AUDIT}{finding.name}" for finding in record.audits))
    causes = [cause for cause in audits if cause_sentences(record, cause)]
    if not record.finished and not record.first_updates:
        return causes or [ENDS[record.status]]
    if below_bounds(record.scores, record.bounds):
        causes.append(BOUND)
    elif not causes or cause_sentences(record, FIGURES):
        causes.append(FIGURES)
    return causes


def find_failed_cells(records: Iterable[Record]) -> list[FailedCells]:
    """Groups failed records by cause: audits first, starting with the most common one."""
    by_cause: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        for cause in _causes(record):
            by_cause[cause].append(record)
    order = [BOUND, FIGURES, *ENDS.values()]

    def rank(cause: str) -> tuple[int, int]:
        cells = {record.cell for record in by_cause[cause]}
        return order.index(cause) if cause in order else -1, -len(cells)

    failures_by_ids: dict[tuple[int, ...], FailedCells] = {}
    for cause in sorted(by_cause, key=rank):
        failed = by_cause[cause]
        ids = tuple(map(id, failed))
        failures_by_ids.setdefault(ids, FailedCells([], failed)).causes.append(cause)
    return list(failures_by_ids.values())


# Audits that compare all cells of a run


def cross_cell_audits(records: Sequence[Record]) -> dict[str, list[AuditFinding]]:
    """The findings of audits that compare the cells of one profile and seed, by cell.

    No two cells may have equal results. Cells with the same backbone and task must have equal rows.
    """
    findings = {}
    results = {record.cell: _results(record) for record in records}
    for record in records:
        faults = {}
        figures = results[record.cell]
        if figures:
            faults["distinct_results"] = ""
            for cell, twin in results.items():
                if cell != record.cell and twin & figures:
                    faults["distinct_results"] = f"the results equal those of {cell}"
        if record.data:
            differing = []
            for peer in records:
                is_peer = (peer.backbone, peer.task) == (record.backbone, record.task)
                if is_peer and peer.data and peer.data.fingerprint != record.data.fingerprint:
                    differing.append(peer.cell)
            fault = f"rows differ from {', '.join(differing)}" if differing else ""
            faults["same_rows_in_triple"] = fault
        own_findings = []
        for name, fault in faults.items():
            detail = fault or "none other"
            own_findings.append(AuditFinding(name=name, passed=not fault, detail=detail))
        findings[record.cell] = own_findings
    return findings


def _results(record: Record) -> set[tuple[object, ...]]:
    """Figures that no two honest cells share; each combines scores with losses or predictions."""
    if not record.scores:
        return set()
    scores = tuple(sorted(record.scores.items()))
    if record.evaluation and record.evaluation.loss:
        return {("evaluation", scores, record.evaluation.loss)}
    losses = tuple(record.training.losses) if record.training else ()
    figures: set[tuple[object, ...]] = {("training", scores, losses)}
    # Labels have few values, so methods may agree on them. Predictions are unique only if the model
    # learned something and is wrong on more rows than chance explains. The file name is their hash.
    has_learned = any(f.name == "learned_something" and f.passed for f in record.audits)
    main = record.scores.get(record.main_score)
    if not record.examples or not record.data or not has_learned or main is None:
        return figures
    if record.data.rows["test"] * (100 - main) / 100 >= SHARED_BY_LUCK:
        figures.add(("predictions", scores, record.examples.file))
    return figures


def compare_cells(records: Sequence[Record]) -> list[Record]:
    """Repeats the audits that compare cells of one profile and seed, and updates the statuses.

    Older findings may cover fewer cells. A shard's findings, for example, cover its own cells only.
    """
    runs: dict[tuple[str, int | None], list[Record]] = defaultdict(list)
    for record in records:
        if record.finished:
            runs[record.profile, record.seeds.seed].append(record)
    findings = {run: cross_cell_audits(group) for run, group in runs.items()}
    compared = []
    for record in records:
        if record.finished:
            new_findings = findings[record.profile, record.seeds.seed][record.cell]
            sentences = _without_audits(record.missed, TOGETHER)
            sentences += [locate(record, text) for text in failed_audits(new_findings)]
            own_findings = [finding for finding in record.audits if finding.name not in TOGETHER]
            record = replace(record, audits=[*own_findings, *new_findings])
            record = _end_record(record, sentences)
        compared.append(record)
    return weigh_misses(compared)


def contradicts(record: Record) -> bool:
    """Checks whether another cell of the same run shows that a record is wrong."""
    return any(finding.name in TOGETHER for finding in _failed_findings(record))
