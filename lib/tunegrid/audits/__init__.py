"""Runs audits: functions that check that a cell ran as declared.

An audit examines part of the `Evidence`: the model, the rows, the training or the predictions. If
it applies, its finding is named after the function. Audits across several cells are in
`tunegrid.runs.status`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from tunegrid.audits import (
    before,
    computation,
    dropout,
    labels,
    precision,
    saved,
    scores,
    search,
    training,
)
from tunegrid.audits.evidence import AbsentError, Evidence
from tunegrid.errors import first_line
from tunegrid.grid.methods import Answer, Measured
from tunegrid.record import AuditFinding

__all__ = ["AUDITS", "BEFORE", "LATER", "Evidence", "run_audits"]

# An audit returns an answer, sometimes with the scores that are reached without a model.
Audit = Callable[[Evidence], Answer | tuple[bool, str, Mapping[str, float]]]
BEFORE = "before training"  # so that a cell that is wrong from the start fails within seconds
AUDITS: Mapping[str, Sequence[Audit]] = {
    BEFORE: (
        before.checkpoint_loaded,
        training.trains_as_declared,
        before.adapters_where_declared,
        before.quantized_as_declared,
        before.packed_from_checkpoint,
        before.drawn_from_the_seed,
        before.labels_are_targets,
        before.answers_at_annotated_start,
        before.offsets_show_their_tokens,
        before.no_leakage,
        computation.new_adapters_add_nothing,
        training.ranks_train_as_one,
    ),
    "of training": (
        training.base_frozen,
        training.gradients_reach,
        training.weights_moved,
        training.variant_applied,
        training.trains_in_fp32,
        training.gradients_clipped,
        training.optimizer_set_as_declared,
        training.optimizer_steps_as_defined,
        training.schedule_counts_updates,
        training.loss_is_mean_over_accumulation,
        labels.updates_run_as_labelled,
        precision.operations_run_in_their_types,
        training.memory_does_not_grow,
        training.ranks_end_alike,
    ),
    "of the trained model": (
        computation.loss_is_the_tasks,
        computation.predicting_twice_is_the_same,
        computation.rows_alone_as_in_batch,
        computation.decoder_sees_no_future,
        computation.gradients_survive_evaluation,
        computation.packed_layers_compute_as_declared,
        computation.output_follows_trained_tokens,
        computation.adapters_add_as_declared,
        computation.adapter_survives_its_switches,
        dropout.dropout_drops,
    ),
    "of scores": (
        scores.selection_apart_from_test,
        scores.prompt_intact_at_inference,
        scores.windows_map_to_examples,
        scores.scored_alone_as_in_batch,
        search.cache_changes_nothing,
        search.texts_are_the_models,
        scores.generation_not_truncated,
        scores.metric_invariants,
        scores.predictions_not_collapsed,
        scores.learned_something,
    ),
    "of serving": (saved.saved_is_served,),
}
LATER = tuple(stage for stage in AUDITS if stage != BEFORE)


def run_audits(evidence: Evidence, stages: Iterable[str] = tuple(AUDITS)) -> list[AuditFinding]:
    """Runs the audits of `stages` and returns the findings of those that apply.

    An audit does not apply if it returns None or raises AbsentError. Any other exception counts as
    a failure.
    """
    findings = []
    for audit in chain.from_iterable(AUDITS[stage] for stage in stages):
        try:
            answer = audit(evidence)
        except AbsentError:
            continue
        except Exception as error:  # a broken run must still get its record written
            answer = False, f"could not look: {type(error).__name__}: {first_line(error)}"
        if answer is None:
            continue
        passed, detail, *extras = answer
        baseline: dict[str, float] = dict(*extras)
        finding = AuditFinding(
            name=audit.__name__,
            passed=bool(passed),
            detail=detail,
            without_model=baseline or None,
        )
        if isinstance(passed, Measured):
            value = passed.value if math.isfinite(passed.value) else None
            finding = replace(finding, value=value, limit=passed.limit)
        findings.append(finding)
    return findings
