"""Audits of saved figures, which need no model. In: records. Out: what cannot be, and which cells are not like for like."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

from lib.grid.backbones import HEAD_EXCEPTIONS
from lib.results.record import Record

POINTS = 1e-6  # what rounding may do to a mean
ORDERED = (("exact_match", "f1"), ("rougeL", "rouge1"), ("rouge2", "rouge1"))
Finding = dict[str, str | bool]
Findings = dict[str, list[Finding]]  # by cell


def across(records: Sequence[Record]) -> Findings:
    """Audits over the cells of one profile together: a finding of each for every cell that it concerns."""
    found: Findings = defaultdict(list)
    for profile in dict.fromkeys(record["profile"] for record in records):
        cells = {record["cell"]: record for record in records if record["profile"] == profile}
        for audit in (distinct_results, same_rows_in_triple):
            for cell, fault in audit(cells).items():
                detail = fault or "none other"
                found[cell].append({"name": audit.__name__, "passed": not fault, "detail": detail})
    return dict(found)


def distinct_results(records: Mapping[str, Record]) -> dict[str, str]:
    """By cell: which other cell has the same results to the last digit; empty where none has."""
    scored = {cell: outcome for cell, record in records.items() if (outcome := _results(record))}
    faults = dict.fromkeys(scored, "")
    for one, other in combinations(scored, 2):
        if scored[one] == scored[other]:
            faults[one], faults[other] = f"the results are those of {other}", f"the results are those of {one}"
    return faults


def _results(record: Record) -> tuple[object, ...]:
    """All that two honest cells cannot share: every score and every loss."""
    training, evaluation = record["training"] or {}, record["evaluation"] or {}
    if not record["scores"]:
        return ()
    return tuple(sorted(record["scores"].items())), tuple(training.get("losses", ())), evaluation.get("loss")


def same_rows_in_triple(records: Mapping[str, Record]) -> dict[str, str]:
    """By cell: whose rows differ from its own among the methods of one backbone and task; empty where none do."""
    faults = {}
    for cells in triples(records).values():
        prints = {cell: records[cell]["data"]["fingerprint"] for cell in cells if records[cell]["data"]}
        for cell, own in prints.items():
            others = [other for other, mark in prints.items() if mark != own]
            faults[cell] = f"other rows than {', '.join(others)}" if others else ""
    return faults


def triples(records: Mapping[str, Record]) -> dict[str, list[str]]:
    """Cells by backbone and task."""
    found: dict[str, list[str]] = defaultdict(list)
    for cell, record in records.items():
        found[f"{record['backbone']}_{record['task']}"].append(cell)
    return found


def invariants(record: Record) -> list[str]:
    """Sentences on scores that no predictions can have."""
    scores = {name: value for name, value in record["scores"].items() if value is not None}
    odd = [f"{name} is not a number" for name in record["scores"].keys() - scores.keys()]
    odd += [f"{name} is {value}" for name, value in scores.items() if not 0 <= value <= 100 + POINTS]
    odd += [
        f"{low} {scores[low]} is above {high} {scores[high]}"
        for low, high in ORDERED
        if low in scores and high in scores and scores[low] > scores[high] + POINTS
    ]
    return odd + _bertscore(scores)


def _bertscore(scores: Mapping[str, float]) -> list[str]:
    """Each row's F1 is a harmonic mean, so the mean of F1s cannot be above the mean of either by more than both allow."""
    names = ("bertscore_precision", "bertscore_f1", "bertscore_recall")
    if not all(name in scores for name in names):
        return []
    precision, f1, recall = (scores[name] for name in names)
    if f1 <= (precision + recall) / 2 + POINTS:  # a harmonic mean is at most the arithmetic one, on each row and on average
        return []
    return [f"bertscore_f1 {f1} is above the mean of precision {precision} and recall {recall}"]


SHARED: tuple[tuple[str, Callable[[Record], object]], ...] = (
    ("updates", lambda record: record["training"]["updates"]),
    ("real tokens", lambda record: record["training"]["tokens"]),
    ("order of rows", lambda record: record["training"]["order"]),
    ("test rows", lambda record: record["data"] and record["data"]["fingerprint"]),
)


def unlike(records: Mapping[str, Record]) -> list[str]:
    """A line for every pair of methods that is not like for like, with what differs."""
    lines = []
    for cells in triples(records).values():
        for one, other in combinations([cell for cell in cells if records[cell]["training"]], 2):
            differ = [name for name, value in SHARED if value(records[one]) != value(records[other])]
            differ += [f"{cell} adapts its head alone" for cell in (one, other) if cell in HEAD_EXCEPTIONS]
            if differ:
                lines.append(f"{one} and {other}: {', '.join(differ)}")
    return lines


def failed(record: Record) -> Iterable[str]:
    """Sentences on the audits that a record says it failed."""
    for finding in record["audits"]:
        if not finding["passed"]:
            yield f"audit {finding['name']}: {finding['detail']}"


def not_numbers(record: Record) -> list[str]:
    """Sentences on losses or scores that are not numbers."""
    losses = (record["training"] or {}).get("losses", ())
    return ["a loss is not a number"] if any(loss is None or not math.isfinite(loss) for loss in losses) else []
