"""Audits: did the cell run as labelled? Each that applies gives a finding.

Each is a pure function of `Evidence`, named as in the record; it takes the cell's description as the truth and looks at what
was built, encoded, trained and predicted. Those `BEFORE` look before training, so that a cell which is wrong from the start is
known in seconds; all others look at the trained model. Audits over several cells are in `tunegrid.results.status`.
"""

from collections.abc import Callable, Iterable, Sequence

from tunegrid.audits.answers import (
    generation_not_truncated,
    learned_something,
    metric_invariants,
    prompt_intact_at_inference,
    windows_map_to_examples,
)
from tunegrid.audits.arithmetic import (
    adapters_add_as_declared,
    decoder_sees_no_future,
    gradients_reach,
    gradients_survive_evaluation,
    loss_is_the_tasks,
    output_follows_trained_tokens,
    packed_layers_compute_as_declared,
    predicting_twice_is_the_same,
    rows_alone_as_in_batch,
)
from tunegrid.audits.built import (
    adapters_where_declared,
    drawn_from_the_seed,
    heads_trainable,
    quantized_as_declared,
)
from tunegrid.audits.checkpoint import checkpoint_loaded, packed_from_checkpoint
from tunegrid.audits.dropout import dropout_drops
from tunegrid.audits.evidence import Evidence
from tunegrid.audits.ranks import ranks_end_alike, ranks_train_as_one
from tunegrid.audits.rows import (
    answers_at_annotated_start,
    labels_are_targets,
    no_leakage,
    offsets_show_their_tokens,
    selection_apart_from_test,
)
from tunegrid.audits.scored import cache_changes_nothing, scored_alone_as_in_batch, texts_are_the_models
from tunegrid.audits.served import saved_is_served
from tunegrid.audits.switches import adapter_survives_its_switches
from tunegrid.audits.trained import (
    base_frozen,
    gradients_clipped,
    loss_is_mean_over_accumulation,
    optimizer_steps_as_defined,
    schedule_counts_updates,
    trains_in_fp32,
    variant_applied,
    weights_moved,
)
from tunegrid.errors import first_line
from tunegrid.grid.methods import Answer
from tunegrid.record import AuditFinding

__all__ = ["AUDITS", "BEFORE", "OF_LEARNING", "Evidence", "audited", "audited_before"]

Audit = Callable[[Evidence], Answer]
BEFORE: tuple[Audit, ...] = (
    checkpoint_loaded,
    heads_trainable,
    adapters_where_declared,
    quantized_as_declared,
    packed_from_checkpoint,
    drawn_from_the_seed,
    labels_are_targets,
    answers_at_annotated_start,
    offsets_show_their_tokens,
    no_leakage,
    ranks_train_as_one,
)
AUDITS: tuple[Audit, ...] = (  # in the record's order
    checkpoint_loaded,
    heads_trainable,
    adapters_where_declared,
    quantized_as_declared,
    packed_from_checkpoint,
    drawn_from_the_seed,
    base_frozen,
    variant_applied,
    trains_in_fp32,
    gradients_clipped,
    loss_is_the_tasks,
    loss_is_mean_over_accumulation,
    optimizer_steps_as_defined,
    ranks_train_as_one,
    ranks_end_alike,
    schedule_counts_updates,
    predicting_twice_is_the_same,
    rows_alone_as_in_batch,
    gradients_reach,
    gradients_survive_evaluation,
    adapters_add_as_declared,
    adapter_survives_its_switches,
    output_follows_trained_tokens,
    packed_layers_compute_as_declared,
    dropout_drops,
    cache_changes_nothing,
    decoder_sees_no_future,
    scored_alone_as_in_batch,
    texts_are_the_models,
    labels_are_targets,
    answers_at_annotated_start,
    offsets_show_their_tokens,
    no_leakage,
    selection_apart_from_test,
    windows_map_to_examples,
    prompt_intact_at_inference,
    metric_invariants,
    saved_is_served,
)
OF_LEARNING: tuple[Audit, ...] = (weights_moved, generation_not_truncated, learned_something)
ORDER = [audit.__name__ for audit in (*AUDITS, *OF_LEARNING)]


def audited_before(evidence: Evidence) -> list[AuditFinding]:
    """Findings of the audits that can look before training."""
    return _findings(evidence, BEFORE)


def audited(evidence: Evidence, before: Sequence[AuditFinding] | None = None) -> list[AuditFinding]:
    """Findings of all audits, in the record's order; `before` has those of `audited_before`, asked here if absent."""
    early = audited_before(evidence) if before is None else before
    late = _findings(evidence, [audit for audit in (*AUDITS, *OF_LEARNING) if audit not in BEFORE])
    return sorted([*early, *late], key=lambda finding: ORDER.index(finding.name))


def _findings(evidence: Evidence, audits: Iterable[Audit]) -> list[AuditFinding]:
    """A finding for every audit that has something to look at; one that cannot look is one that failed."""
    findings = []
    for audit in audits:
        try:
            answer = audit(evidence)
        except Exception as error:  # a broken run must not keep its own record from being written
            answer = False, f"could not look: {type(error).__name__}: {first_line(error)}"
        if answer is not None:
            findings.append(AuditFinding(name=audit.__name__, passed=answer[0], detail=answer[1]))
    return findings
