"""Audits: did the cell run as labelled? In: what a run leaves behind. Out: a finding for every audit that applies.

Each is a pure function of `Evidence`, named as in the record; it takes the cell's description as the truth and looks at what
was built, encoded, trained and predicted. Audits over several cells are in `lib.results.record_checks`.
"""

from collections.abc import Callable

from lib.errors import first_line
from lib.grid.methods import Answer
from lib.run.audits.answers import (
    generation_not_truncated,
    learned_something,
    metric_invariants,
    prompt_intact_at_inference,
    windows_map_to_examples,
)
from lib.run.audits.arithmetic import (
    adapters_add_as_declared,
    gradients_reach,
    predicting_twice_is_the_same,
    rows_alone_as_in_batch,
)
from lib.run.audits.built import (
    adapters_where_declared,
    checkpoint_loaded,
    heads_trainable,
    packed_from_checkpoint,
    quantized_as_declared,
)
from lib.run.audits.dropout import dropout_drops
from lib.run.audits.evidence import Evidence, Finding
from lib.run.audits.generated import cache_changes_nothing, decoder_sees_no_future, greedy_texts_are_the_models
from lib.run.audits.rows import (
    answers_at_annotated_start,
    labels_are_targets,
    no_leakage,
    offsets_show_their_tokens,
    selection_apart_from_test,
)
from lib.run.audits.trained import (
    base_frozen,
    gradients_clipped,
    loss_is_mean_over_accumulation,
    schedule_counts_updates,
    trains_in_fp32,
    variant_applied,
    weights_moved,
)

__all__ = ["AUDITS", "OF_LEARNING", "Evidence", "Finding", "audited"]

AUDITS: tuple[Callable[[Evidence], Answer], ...] = (
    checkpoint_loaded,
    heads_trainable,
    adapters_where_declared,
    quantized_as_declared,
    packed_from_checkpoint,
    base_frozen,
    variant_applied,
    trains_in_fp32,
    gradients_clipped,
    loss_is_mean_over_accumulation,
    schedule_counts_updates,
    predicting_twice_is_the_same,
    rows_alone_as_in_batch,
    gradients_reach,
    adapters_add_as_declared,
    dropout_drops,
    cache_changes_nothing,
    decoder_sees_no_future,
    greedy_texts_are_the_models,
    labels_are_targets,
    answers_at_annotated_start,
    offsets_show_their_tokens,
    no_leakage,
    selection_apart_from_test,
    windows_map_to_examples,
    prompt_intact_at_inference,
    metric_invariants,
)
OF_LEARNING: tuple[Callable[[Evidence], Answer], ...] = (weights_moved, generation_not_truncated, learned_something)


def audited(evidence: Evidence) -> list[Finding]:
    """A finding for every audit that has something to look at; one that cannot look is one that failed."""
    findings = []
    for audit in (*AUDITS, *OF_LEARNING):
        try:
            answer = audit(evidence)
        except Exception as error:  # a broken run must not keep its own record from being written
            answer = False, f"could not look: {type(error).__name__}: {first_line(error)}"
        if answer is not None:
            findings.append(Finding(name=audit.__name__, passed=answer[0], detail=answer[1], of_learning=audit in OF_LEARNING))
    return findings
