"""Audits: did the cell run as labelled? In: what a run leaves behind. Out: a finding for every audit that applies.

Each is a pure function of `Left`, named as in the record; it takes the cell's description for truth and looks at what was
built, encoded, trained and predicted. Audits over several cells are in `lib.results.audits`.
"""

from collections.abc import Callable

from lib.errors import first_line
from lib.run.audits.answers import (
    generation_not_truncated,
    learned_something,
    metric_invariants,
    prompt_intact_at_inference,
    windows_map_to_examples,
)
from lib.run.audits.built import adapters_where_declared, checkpoint_loaded, heads_trainable, quantized_as_declared
from lib.run.audits.left import Answer, Finding, Left
from lib.run.audits.rows import answers_at_annotated_start, labels_are_targets, no_leakage, selection_apart_from_test
from lib.run.audits.trained import base_frozen, loss_is_mean_over_accumulation, schedule_counts_updates, weights_moved

__all__ = ["AUDITS", "OUTCOMES", "Finding", "Left", "audited"]

AUDITS: tuple[Callable[[Left], Answer], ...] = (
    checkpoint_loaded,
    heads_trainable,
    adapters_where_declared,
    quantized_as_declared,
    base_frozen,
    loss_is_mean_over_accumulation,
    schedule_counts_updates,
    labels_are_targets,
    answers_at_annotated_start,
    no_leakage,
    selection_apart_from_test,
    windows_map_to_examples,
    prompt_intact_at_inference,
    metric_invariants,
)
OUTCOMES: tuple[Callable[[Left], Answer], ...] = (weights_moved, generation_not_truncated, learned_something)


def audited(left: Left) -> list[Finding]:
    """A finding for every audit that has something to look at; one that cannot look is one that failed."""
    found = []
    for audit in (*AUDITS, *OUTCOMES):
        try:
            answer = audit(left)
        except Exception as error:  # a broken run must not keep its own record from being written
            answer = False, f"could not look: {type(error).__name__}: {first_line(error)}"
        if answer is not None:
            found.append(Finding(name=audit.__name__, passed=answer[0], detail=answer[1], outcome=audit in OUTCOMES))
    return found
