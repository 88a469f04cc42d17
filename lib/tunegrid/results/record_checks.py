"""Audits saved figures without a model: what cannot be, and which cells are not like for like."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

from tunegrid.errors import InputError
from tunegrid.record import AuditFinding, Record
from tunegrid.record.invariants import impossible

Findings = dict[str, list[AuditFinding]]  # by cell


def cross_cell_audits(records: Sequence[Record]) -> Findings:
    """Audits over the cells of each profile together: one finding an audit for every cell that it concerns."""
    findings: Findings = defaultdict(list)
    for profile in dict.fromkeys(record.profile for record in records):
        cells = {record.cell: record for record in records if record.profile == profile}
        for audit in TOGETHER:
            for cell, fault in audit(cells).items():
                findings[cell].append(AuditFinding(name=audit.__name__, passed=not fault, detail=fault or "none other"))
    return dict(findings)


# Rows that score no point. Two honest cells may be wrong on the same few rows: on the quick cells, five seeds, on two of 512.
SHARED_BY_LUCK = 30


def distinct_results(records: Mapping[str, Record]) -> dict[str, str]:
    """By cell: which other cell has the same results to the last digit; empty where none has."""
    results = {cell: figures for cell, record in records.items() if (figures := _results(record))}
    cells_by_figure: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for cell, figures in results.items():
        for figure in figures:
            cells_by_figure[figure].append(cell)
    faults = dict.fromkeys(results, "")
    shared = {pair for cells in cells_by_figure.values() if len(cells) > 1 for pair in combinations(cells, 2)}
    order = {cell: index for index, cell in enumerate(results)}
    for one, other in sorted(shared, key=lambda pair: (order[pair[0]], order[pair[1]])):
        faults[one], faults[other] = f"the results are those of {other}", f"the results are those of {one}"
    return faults


def _results(record: Record) -> set[tuple[object, ...]]:
    """Figures, of which two honest cells share none: every score, together with what else only one run can have."""
    if not record.scores:
        return set()
    scores, loss = tuple(sorted(record.scores.items())), record.evaluation and record.evaluation.loss
    figures: set[tuple[object, ...]] = {("training", scores, tuple(record.training.losses) if record.training else (), loss)}
    if loss:
        figures.add(("evaluation", scores, loss))
    if record.examples and not loss and _has_predictions_of_its_own(record):  # a label has few values: methods may agree
        figures.add(("predictions", scores, record.examples.file))  # the file's name is the hash of its content
    return figures


def _has_predictions_of_its_own(record: Record) -> bool:
    """Whether equal predictions are a copy: the model learned something, and is wrong on more rows than by luck."""
    learned = any(finding.name == "learned_something" and finding.passed for finding in record.audits)
    main, rows = record.scores.get(record.main_score), record.data.rows.test if record.data else 0
    return learned and main is not None and rows * (100 - main) / 100 >= SHARED_BY_LUCK


def same_rows_in_triple(records: Mapping[str, Record]) -> dict[str, str]:
    """By cell: whose rows differ from its own among the methods of one backbone and task; empty where none do."""
    faults = {}
    for cells in triples(records).values():
        fingerprints = {cell: data.fingerprint for cell in cells if (data := records[cell].data)}
        for cell, own in fingerprints.items():
            others = [other for other, fingerprint in fingerprints.items() if fingerprint != own]
            faults[cell] = f"other rows than {', '.join(others)}" if others else ""
    return faults


TOGETHER = (distinct_results, same_rows_in_triple)


def triples(records: Mapping[str, Record]) -> dict[str, list[str]]:
    """Cells by backbone and task."""
    cells_by_pair: dict[str, list[str]] = defaultdict(list)
    for cell, record in records.items():
        cells_by_pair[f"{record.backbone}_{record.task}"].append(cell)
    return cells_by_pair


def invariants(record: Record) -> list[str]:
    """Sentences on scores that no predictions can have; a saved record does not say whether one answer was an article alone."""
    one_row = 100 / record.data.rows.test if record.data and record.data.rows.test else 0.0
    return impossible(record.scores, empty_answers=one_row)


SHARED: tuple[tuple[str, Callable[[Record], object]], ...] = (
    ("updates", lambda record: record.training and record.training.updates),
    ("real tokens", lambda record: record.training and record.training.tokens),
    ("order of rows", lambda record: record.training and record.training.order),
    ("test rows", lambda record: record.data and record.data.fingerprint),
    ("search", lambda record: record.recipe.generation),
    ("ranks", lambda record: record.processes),
)


def unlike(records: Mapping[str, Record]) -> list[str]:
    """A line for every pair of methods that is not like for like, with what differs."""
    lines = []
    for cells in triples(records).values():
        for one, other in combinations([cell for cell in cells if records[cell].training], 2):
            differences = [name for name, value in SHARED if value(records[one]) != value(records[other])]
            differences += [f"{cell} adapts its head alone" for cell in (one, other) if adapts_head_alone(records[cell])]
            if differences:
                lines.append(f"{one} and {other}: {', '.join(differences)}")
    return lines


def unlike_pairs(records: Sequence[Record]) -> list[str]:
    """The lines of `unlike`, each profile and seed by itself; each line once."""
    runs = dict.fromkeys((record.profile, record.seeds.seed) for record in records)
    by_run = ({r.cell: r for r in records if (r.profile, r.seeds.seed) == run} for run in runs)
    return list(dict.fromkeys(line for cells in by_run for line in unlike(cells)))


def adapts_head_alone(record: Record) -> bool:
    """Whether every layer that carries an adapter is one that pretraining never saw."""
    targets = set((record.recipe.adapter or {}).get("target_modules") or ())
    return bool(targets) and record.model is not None and targets <= set(record.model.adapted_modules)


def failed(record: Record) -> Iterable[str]:
    """Sentences on the audits that a record says it failed."""
    return (f"audit {finding.name}: {finding.detail}" for finding in record.audits if not finding.passed)


def not_numbers(record: Record) -> list[str]:
    """Sentences on losses that are not numbers."""
    losses = record.training.losses if record.training else ()
    return ["a loss is not a number"] if any(loss is None or not math.isfinite(loss) for loss in losses) else []


def check_alike(records: Iterable[Record]) -> None:
    """Raises InputError where the seeds of a cell differ in more than the seed."""
    facts_by_cell: dict[str, tuple[object, ...]] = {}
    for record in records:
        facts = (record.recipe, record.limits, record.examples and record.examples.rows_hash)
        if facts_by_cell.setdefault(record.cell, facts) != facts:
            raise InputError(f"the runs trained or scored {record.cell} differently, so they are not seeds of one experiment")
