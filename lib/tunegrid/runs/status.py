"""Decides a cell's status by the reason it stopped, its audits and its bounds; explains failures.

An audit that needs a longer run than this one does not count, and the record says so.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tunegrid.grid.cells import STUDY_IDS, Cell
from tunegrid.grid.recipes import CONFIRMING, FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import AuditFinding, Record, Status
from tunegrid.record.checks import NEED_LENGTH, below_bounds, failed_audits, missed_bounds_alone
from tunegrid.words import count, count_text, phrase, some

# By then all trainable weights have moved. LoRA's A moves one update after B; a warm-up may start
# at a rate of 0; and fp16 loses its first updates to overflows, while its scale falls.
FIRST_UPDATES = 10
TELLING_ROWS = 100  # on 100 test rows, three standard errors of a difference are about 15 points
# Rows that score no point. Two honest cells may be wrong on the same few rows: on the quick cells,
# five seeds, on two of 512.
SHARED_BY_LUCK = 30
# Audits that need enough updates
LEARNING = ("generation_not_truncated", "predictions_not_collapsed", "learned_something")
ENOUGH_UPDATES = 300  # the least that a user's quick cell is advised to make
TOGETHER = ("distinct_results", "same_rows_in_triple")  # audits over the cells of a run


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The length of a run."""

    updates: int
    planned: int  # that the recipe makes if the command line changes nothing
    one_pass: int  # of those, until each training row was seen once
    test_rows: int | None = None  # that were scored; None if the command line did not limit them

    def excuse(self, audit: str) -> str:
        """The reason why so short a run may fail this audit; empty if the audit counts."""
        needed = FIRST_UPDATES if audit == "weights_moved" else self.one_pass
        if audit in NEED_LENGTH and self.updates < min(needed, self.planned):
            made = f"{self.updates} of {self.planned} planned updates"
            return f"a run of {made} may be too short to pass it"
        if audit != "learned_something" or self.test_rows is None or self.test_rows >= TELLING_ROWS:
            return ""
        return f"{self.test_rows} test rows may be too few to pass it"


def reason_not_to_train(cell: Cell, findings: Iterable[AuditFinding]) -> str | None:
    """The reason why a cell must not train, from audits before training; None if it may.

    A full cell that is wrong from the start would train for hours. A micro cell trains, so that its
    record shows all faults; so does a cell on random tokens, whose rows no audit checks.
    """
    if cell.profile.micro or cell.profile.random_weights:
        return None
    failed = failed_audits(findings)
    return f"not trained, {'; '.join(failed)}" if failed else None


def add_status(record: Record, extent: Extent, unexpected: Sequence[str] = ()) -> Record:
    """The record of a cell that ended, with its status and a sentence on each fault."""
    if record.training and record.training.stopped:  # nothing else counts
        sentence = locate(record, record.training.stopped)
        return replace(record, status="stopped", excused={}, missed=[sentence])
    reasons = {finding.name: extent.excuse(finding.name) for finding in _failed_findings(record)}
    record = replace(record, excused={name: reason for name, reason in reasons.items() if reason})
    misses = below_bounds(record.scores, record.bounds) if record.evaluation else []
    faults = [*audit_sentences(record), *unexpected, *misses]
    return _end_record(record, [locate(record, sentence) for sentence in faults])


def _failed_findings(record: Record) -> list[AuditFinding]:
    return [finding for finding in record.audits if not finding.passed]


def audit_sentences(record: Record) -> list[str]:
    """A sentence for each audit that counts and failed, with advice for a user's cell."""
    sentences = []
    for finding in record.audits:
        for sentence in failed_audits([finding], record.excused):
            advice = more_training(record) if finding.name in LEARNING else ""
            sentences.append(f"{sentence}; {advice}" if advice else sentence)
    return sentences


def more_training(record: Record) -> str:
    """The change in a `--grid` file that lets a cell train longer; empty for one of the study."""
    if record.cell in STUDY_IDS or record.training is None:
        return ""
    if record.profile == FULL_PROFILE.id:
        epochs = 2 * record.recipe.num_train_epochs
        return f"it may need more training: give its recipe num_train_epochs={epochs}"
    if record.profile == QUICK_PROFILE.id:
        made = record.training.updates
        advice = f'give its task or recipe quick={{"max_steps": {max(ENOUGH_UPDATES, 2 * made)}}}'
        return f"{made} updates may be too few: {advice}"
    return ""


def _end_record(record: Record, sentences: list[str]) -> Record:
    """The record with these sentences and the status that follows from them.

    It is *missed* if a bound was missed, and *audit* if only audits failed.
    """
    is_begun = record.first_updates is not None
    status: Status
    if not sentences:
        status = "begun" if is_begun else "passed"
    elif is_begun:
        status = "failed"
    elif below_bounds(record.scores, record.bounds):
        status = "missed"
    else:
        status = "audit" if failed_audits(record.audits, record.excused) else "missed"
    return replace(record, missed=sentences, status=status)


def too_short(record: Record) -> list[str]:
    """Sentences on failed audits that do not count, since the run was too short for them."""
    sentences = []
    for finding in _failed_findings(record):
        if finding.name in record.excused:
            fault = failed_audits([finding])[0]
            sentences.append(locate(record, f"{fault}; {record.excused[finding.name]}"))
    return sentences


def locate(record: Record, sentence: str) -> str:
    """The sentence with its cell, profile and seed."""
    return f"{sentence} ({record.cell}, {record.profile}, seed {record.seeds.seed})"


def cell_status(seeds: Sequence[Record]) -> Status:
    """The worst status of a cell's seeds."""
    not_passed = [record for record in seeds if record.status != "passed"]
    not_passed.sort(key=lambda record: record.unharmed)
    return not_passed[0].status if not_passed else "passed"


def weigh_misses(records: Sequence[Record]) -> list[Record]:
    """The records, with the status *unconfirmed* for misses that a second training did not confirm.

    A training that passed absolves the one that it confirms, or that confirms it.
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


def unconfirmed_misses(records: Sequence[Record], older: Sequence[Record] = ()) -> Iterator[str]:
    """A sentence for each cell with an unconfirmed miss; it counts seeds of older runs as well."""
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

AUDIT = "failed audit "  # and its name
BOUND = "missed a bound"
FIGURES = "had wrong figures"
# Causes by the status of a cell that did not finish. Audits come first, then figures, then these.
ENDS = {
    "error": "broke off",
    "killed": "lost its process",
    "stopped": "stopped early",
    "not run": "did not run",
    "unfinished": "did not finish",
}


class FailedCells(NamedTuple):
    """Records that failed by the same causes."""

    causes: list[str]
    records: Sequence[Record]

    @property
    def cells(self) -> list[str]:
        """The distinct cells."""
        return list(dict.fromkeys(record.cell for record in self.records))

    @property
    def name(self) -> str:
        """The causes, as "failed audits base_frozen and dropout_drops and missed a bound"."""
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
        """The number of cells, with the causes."""
        return f"{count(len(self.cells), 'cell')} {self.name}"

    def headline(self, total: int) -> str:
        """The first cell's sentence and the number of cells; an audit's name comes last."""
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
        """A clause on the second training of the first cell, if that failed as well; else empty."""
        for record in self.records:
            if record.cell == self.cells[0] and record.seeds.confirms is not None:
                return f", confirmed by a second training at seed {record.seeds.seed}"
        return ""


def cause_sentences(record: Record, cause: str) -> list[str]:
    """A record's sentences on an audit; for any other cause, its sentences on no audit."""
    if cause.startswith(AUDIT):
        start = f"audit {cause.removeprefix(AUDIT)}: "
        return [sentence for sentence in record.missed if start in sentence]
    return _without_audits(record.missed, [finding.name for finding in _failed_findings(record)])


def _without_audits(sentences: Iterable[str], names: Collection[str]) -> list[str]:
    """The sentences on none of these audits."""
    remaining = list(sentences)
    for name in names:
        remaining = [sentence for sentence in remaining if f"audit {name}: " not in sentence]
    return remaining


def _causes(record: Record) -> list[str]:
    if record.unharmed or record.status == "reported":
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
    """Failed records by their causes: audits first, that of most cells before the others."""
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


# All cells of a run together


def cross_cell_audits(records: Sequence[Record]) -> dict[str, list[AuditFinding]]:
    """Findings by cell on the records of one profile and seed.

    No two cells have equal results, and cells of a backbone and task have equal rows.
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
    """Figures of which two honest cells share none: all scores, with others that are as rare."""
    if not record.scores:
        return set()
    scores = tuple(sorted(record.scores.items()))
    if record.evaluation and record.evaluation.loss:
        return {("evaluation", scores, record.evaluation.loss)}
    losses = tuple(record.training.losses) if record.training else ()
    figures: set[tuple[object, ...]] = {("training", scores, losses)}
    # Labels have few values, and methods may agree on them: only a model that learned something and
    # is wrong on more rows than by luck has predictions of its own. A hash names their file.
    has_learned = any(f.name == "learned_something" and f.passed for f in record.audits)
    main = record.scores.get(record.main_score)
    if not record.examples or not record.data or not has_learned or main is None:
        return figures
    if record.data.rows["test"] * (100 - main) / 100 >= SHARED_BY_LUCK:
        figures.add(("predictions", scores, record.examples.file))
    return figures


def compare_cells(records: Sequence[Record]) -> list[Record]:
    """The records, with the findings on the cells of each profile and seed in place of older ones.

    A shard's findings, for one, are on its own cells alone.
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
    """Checks whether another cell of its run shows that a record is wrong."""
    return any(finding.name in TOGETHER for finding in _failed_findings(record))
