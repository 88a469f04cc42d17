"""Says, as sentences, what is wrong with one cell's results: audits that failed, bounds missed, figures that cannot be."""

import math
from collections.abc import Collection, Iterable, Mapping

from tunegrid.record.invariants import impossible
from tunegrid.record.parts import AuditFinding
from tunegrid.record.record import Record


def below_bounds(scores: Mapping[str, float | None], bounds: Mapping[str, float]) -> list[str]:
    """A sentence for every bound that the scores do not reach; a missing score is below every bound."""
    sentences = []
    for metric, minimum in bounds.items():
        score = scores.get(metric)
        if score is None:
            sentences.append(f"{metric} was not measured, its bound is {minimum:.1f}")
        elif not score >= minimum:
            sentences.append(f"{metric} {score:.1f} is below {minimum:.1f}")
    return sentences


def failures(findings: Iterable[AuditFinding], excused: Collection[str] = ()) -> list[str]:
    """What each audit that failed saw, but for those that do not count."""
    return [sentence_of(finding) for finding in findings if not finding.passed and finding.name not in excused]


def sentence_of(finding: AuditFinding) -> str:
    """What an audit that failed saw."""
    return f"audit {finding.name}: {finding.detail}"


def impossible_figures(record: Record) -> list[str]:
    """Sentences on scores that no predictions can have, and on losses that are not numbers.

    A saved record does not say whether one answer was an article alone.
    """
    one_row = 100 / record.data.rows.test if record.data and record.data.rows.test else 0.0
    losses = record.training.losses if record.training else ()
    not_numbers = any(loss is None or not math.isfinite(loss) for loss in losses)
    return impossible(record.scores, empty_answers=one_row) + (["a loss is not a number"] if not_numbers else [])
