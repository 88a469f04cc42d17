"""Decides a cell's status by why it stopped, what audits found and which bounds it missed; and says why cells failed.

If a run is shorter than an audit needs, the record says that it does not count.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tunegrid.grid.cells import STUDY_IDS, Cell
from tunegrid.grid.recipes import CONFIRMING, FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import AuditFinding, Record, Status
from tunegrid.record.checks import NEED_LENGTH, below_bounds, failed_audits, missed_bounds_alone
from tunegrid.words import count, count_text, phrase, some

# After so many updates all that trains has moved. LoRA's A moves one update after B; a warm-up may start at a rate of 0; and
# fp16 loses its first updates to overflows, while its scale falls.
FIRST_UPDATES = 10
TELLING_ROWS = 100  # of so many test rows, three standard errors of a difference are about 15 points
# Rows that score no point. Two honest cells may be wrong on the same few rows: on the quick cells, five seeds, on two of 512.
SHARED_BY_LUCK = 30
# Audits that need enough updates
LEARNING = ("generation_not_truncated", "predictions_not_collapsed", "learned_something")
ENOUGH_UPDATES = 300  # that a user's quick cell is advised to make, at least
TOGETHER = ("distinct_results", "same_rows_in_triple")  # audits over the cells of a run


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far a run went."""

    updates: int
    planned: int  # that the recipe makes if the command line changes nothing
    one_pass: int  # of those, until each training row was seen once
    test_rows: int | None = None  # that were scored; None if the command line did not limit them

    def excuse(self, audit: str) -> str:
        """Why so short a run may fail this audit; empty if it counts, as most do in every run."""
        needed = FIRST_UPDATES if audit == "weights_moved" else self.one_pass
        if audit in NEED_LENGTH and self.updates < min(needed, self.planned):
            return f"a run of {self.updates} of {self.planned} planned updates may be too short to pass it"
        if audit == "learned_something" and self.test_rows is not None and self.test_rows < TELLING_ROWS:
            return f"{self.test_rows} test rows may be too few to pass it"
        return ""


def reason_not_to_train(cell: Cell, findings: Iterable[AuditFinding]) -> str | None:
    """Why a cell must not train, by what audits found before it does; None if it may.

    A full cell that is wrong from the start would train for hours. A micro one trains, so that its record shows all that
    objects to it; so does one on random tokens, whose rows no audit looks at.
    """
    failed = failed_audits(findings)
    is_guarded = not (cell.profile.micro or cell.profile.random_weights)
    return f"not trained, {'; '.join(failed)}" if failed and is_guarded else None


def add_status(record: Record, extent: Extent, unexpected: Sequence[str] = ()) -> Record:
    """The record of a cell that came to an end, with its status and a sentence for all that is wrong or `unexpected`."""
    if record.training and record.training.stopped:  # nothing else counts
        return replace(record, status="stopped", excused={}, missed=[locate(record, record.training.stopped)])
    failed = [finding.name for finding in record.audits if not finding.passed]
    record = replace(record, excused={name: reason for name in failed if (reason := extent.excuse(name))})
    misses = below_bounds(record.scores, record.bounds) if record.evaluation else []
    faults = [*audit_sentences(record), *unexpected, *misses]
    return _end_record(record, [locate(record, sentence) for sentence in faults])


def audit_sentences(record: Record) -> list[str]:
    """A sentence for each audit that counts and failed; a user's cell is told how to train longer."""
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
        updates = max(ENOUGH_UPDATES, 2 * made)
        return f'{made} updates may be too few: give its task or recipe quick={{"max_steps": {updates}}}'
    return ""


def _end_record(record: Record, sentences: list[str]) -> Record:
    """With these sentences, and the status that follows: *missed* tells of bounds first, *audit* of audits alone."""
    status: Status = "passed" if record.first_updates is None else "begun"
    if sentences:
        by_audits = failed_audits(record.audits, record.excused) and not below_bounds(record.scores, record.bounds)
        status = "failed" if record.first_updates is not None else "audit" if by_audits else "missed"
    return replace(record, missed=sentences, status=status)


def too_short(record: Record) -> list[str]:
    """Sentences on the audits that failed and do not count, since the run was too short to meet them."""
    failed = [finding for finding in record.audits if not finding.passed and finding.name in record.excused]
    return [locate(record, f"{failed_audits([finding])[0]}; {record.excused[finding.name]}") for finding in failed]


def locate(record: Record, sentence: str) -> str:
    """The sentence with the cell, the profile and the seed that it is about."""
    return f"{sentence} ({record.cell}, {record.profile}, seed {record.seeds.seed})"


def cell_status(seeds: Sequence[Record]) -> Status:
    """A cell's status: the first that counts against it; else whether it passed with every seed."""
    others = sorted((record for record in seeds if record.status != "passed"), key=lambda record: record.unharmed)
    return others[0].status if others else "passed"


def weigh_misses(records: Sequence[Record]) -> list[Record]:
    """The records; a miss is *unconfirmed* if the training that confirms it, or that it confirms, passed."""
    by_case = {(record.profile, record.cell, record.seeds.seed): record for record in records}
    pairs = [(by_case.get((r.profile, r.cell, r.seeds.confirms)), r) for r in records if r.seeds.confirms is not None]
    ids = {id(one) for pair in pairs for one, other in (pair, pair[::-1]) if other and other.status == "passed"}
    return [replace(r, status="unconfirmed") if id(r) in ids and missed_bounds_alone(r) else r for r in records]


def unconfirmed_misses(records: Sequence[Record], older: Sequence[Record] = ()) -> Iterator[str]:
    """A sentence for each cell with a miss that its second training did not confirm; it counts seeds of older runs, too."""
    for profile, cell in dict.fromkeys((one.profile, one.cell) for one in records if one.status == "unconfirmed"):
        runs = [one for one in (*records, *older) if (one.profile, one.cell) == (profile, cell) and one.finished]
        misses, seeds = [one for one in runs if one.status == "unconfirmed"], sum(one.seeds.confirms is None for one in runs)
        first, texts = misses[0].seeds, below_bounds(misses[0].scores, misses[0].bounds)
        other = (first.seed or 0) + CONFIRMING if first.confirms is None else first.confirms
        history = f"; {len(misses)} of {count(seeds, 'seed')}" if seeds > 1 else ""
        yield f"{cell} missed a bound at seed {first.seed} ({'; '.join(texts)}), reached at {other}: not confirmed{history}"


# Why cells failed

AUDIT = "failed audit "  # and its name
BOUND, FIGURES = "missed a bound", "had wrong figures"
# Of a cell that came to no end, by status. Audits are told first, then figures, then these.
ENDS = {"error": "broke off", "killed": "lost its process", "stopped": "stopped early", "not run": "did not run"}
ENDS |= {"unfinished": "did not finish"}


class FailedCells(NamedTuple):
    """Records that went wrong by the same causes."""

    causes: list[str]
    records: Sequence[Record]

    @property
    def cells(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(record.cell for record in self.records))

    @property
    def name(self) -> str:
        """As "failed audits base_frozen and dropout_drops and missed a bound"."""
        audits = [cause.removeprefix(AUDIT) for cause in self.causes if cause.startswith(AUDIT)]
        failed = [f"failed audit{'s' if audits[1:] else ''} {phrase(audits)}"] if audits else []
        return " and ".join([*failed, *(cause for cause in self.causes if not cause.startswith(AUDIT))])

    @property
    def title(self) -> str:
        """How many cells, and by what."""
        return f"{count(len(self.cells), 'cell')} {self.name}"

    def headline(self, total: int) -> str:
        """What the first of its cells says, and how many of all say so: an audit's own sentence before the audit's name."""
        cause, number, sentences = self.causes[0], count_text(len(self.cells), total, "cell"), []
        for record in self.records:
            sentence = next(iter(cause_sentences(record, cause)), "no detail is known").removesuffix(locate(record, ""))
            sentences.append(sentence.removeprefix(f"audit {cause.removeprefix(AUDIT)}: "))
        if cause.startswith(AUDIT):
            cells = some(self.cells) if len(set(sentences)) == 1 else f"as {self.cells[0]}"
            return f"{sentences[0]} ({number}, {cells}; {self.name})"
        others = f"; likewise {some(self.cells[1:])}" if self.cells[1:] else ""
        again = self.second_training
        return f"{number} {self.name} ({self.cells[0]}: {sentences[0]}{again}{others})"

    @property
    def second_training(self) -> str:
        """A clause on the second training of the first cell, which went wrong by the same causes; or nothing."""
        seeds = [r.seeds for r in self.records if r.cell == self.cells[0] and r.seeds.confirms is not None]
        return f", confirmed by a second training at seed {seeds[0].seed}" if seeds else ""


def cause_sentences(record: Record, cause: str) -> list[str]:
    """What a record says of what it failed by: of an audit its own sentence, of any other cause what no audit says."""
    if cause.startswith(AUDIT):
        return [sentence for sentence in record.missed if f"audit {cause.removeprefix(AUDIT)}: " in sentence]
    audits = [f"audit {finding.name}: " for finding in record.audits if not finding.passed]
    return [sentence for sentence in record.missed if not any(audit in sentence for audit in audits)]


def _causes(record: Record) -> list[str]:
    if record.unharmed or record.status == "reported" or (record.status == "begun" and not record.missed):
        return []
    audits = [cause for cause in dict.fromkeys(f"{AUDIT}{one.name}" for one in record.audits) if cause_sentences(record, cause)]
    if not record.finished and not record.first_updates:
        return audits or [ENDS[record.status]]
    fault = BOUND if below_bounds(record.scores, record.bounds) else FIGURES
    return [*audits, fault] if fault == BOUND or not audits or cause_sentences(record, FIGURES) else audits


def find_failed_cells(records: Iterable[Record]) -> list[FailedCells]:
    """What went wrong, causes of the same records together: audits first, the one that most cells failed before the others."""
    by_cause: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        for cause in _causes(record):
            by_cause[cause].append(record)
    order = {cause: index for index, cause in enumerate([BOUND, FIGURES, *ENDS.values()])}
    failures_by_ids: dict[tuple[int, ...], FailedCells] = {}
    for cause, runs in sorted(by_cause.items(), key=lambda item: (order.get(item[0], -1), -len({one.cell for one in item[1]}))):
        failures_by_ids.setdefault(tuple(map(id, runs)), FailedCells([], runs)).causes.append(cause)
    return [*failures_by_ids.values()]


# All cells of a run together


def cross_cell_audits(records: Sequence[Record]) -> dict[str, list[AuditFinding]]:
    """Audits by cell over those of one profile and seed: no equal results, and equal rows for a backbone and task."""
    findings, results = {}, {record.cell: _results(record) for record in records}
    for record in records:
        faults = {}
        if figures := results[record.cell]:
            copies = [cell for cell, twin in results.items() if cell != record.cell and twin & figures]
            faults["distinct_results"] = f"the results equal those of {copies[-1]}" if copies else ""
        if record.data:
            peers = [other for other in records if (other.backbone, other.task) == (record.backbone, record.task)]
            others = [one.cell for one in peers if one.data and one.data.fingerprint != record.data.fingerprint]
            faults["same_rows_in_triple"] = f"rows differ from {', '.join(others)}" if others else ""
        findings[record.cell] = [AuditFinding(name=n, passed=not why, detail=why or "none other") for n, why in faults.items()]
    return findings


def _results(record: Record) -> set[tuple[object, ...]]:
    """Figures of which two honest cells share none: every score, together with what else only one run can have."""
    if not record.scores:
        return set()
    scores, loss = tuple(sorted(record.scores.items())), record.evaluation and record.evaluation.loss
    if loss:
        return {("evaluation", scores, loss)}
    figures: set[tuple[object, ...]] = {("training", scores, tuple(record.training.losses) if record.training else ())}
    # Labels have few values, and methods may agree on them: only a model that learned something, and is wrong on more rows than
    # by luck, has predictions of its own. Their file's name is the hash of its content.
    has_learned = any(finding.name == "learned_something" and finding.passed for finding in record.audits)
    main, rows = record.scores.get(record.main_score), record.data.rows["test"] if record.data else 0
    if record.examples and has_learned and main is not None and rows * (100 - main) / 100 >= SHARED_BY_LUCK:
        figures.add(("predictions", scores, record.examples.file))
    return figures


def compare_cells(records: Sequence[Record]) -> list[Record]:
    """New records, with what the cells of one profile and seed show together in place of what others did, as in a shard."""
    runs: dict[tuple[str, int | None], list[Record]] = defaultdict(list)
    for record in records:
        if record.finished:
            runs[record.profile, record.seeds.seed].append(record)
    findings = {run: cross_cell_audits(group) for run, group in runs.items()}

    def audited(record: Record) -> Record:
        cell_findings = findings[record.profile, record.seeds.seed][record.cell]
        sentences = [text for text in record.missed if not any(f"audit {name}: " in text for name in TOGETHER)]
        sentences += [locate(record, sentence) for sentence in failed_audits(cell_findings)]
        other_findings = [finding for finding in record.audits if finding.name not in TOGETHER]
        return _end_record(replace(record, audits=[*other_findings, *cell_findings]), sentences)

    return weigh_misses([audited(record) if record.finished else record for record in records])


def contradicts(record: Record) -> bool:
    """Whether another cell of its run shows that a record cannot be right."""
    return any(finding.name in TOGETHER and not finding.passed for finding in record.audits)
