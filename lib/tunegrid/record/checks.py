"""Says, as sentences, what in a record is wrong: audits that failed, bounds missed, figures that cannot be true."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import get_args

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.methods import METHODS
from tunegrid.grid.recipes import CONFIRMING, SCORED
from tunegrid.grid.tasks import TASKS
from tunegrid.record.record import AuditFinding, Finished, Record

POINTS = PERCENT = 1e-6  # what rounding may do to a score and to a share
ORDERED = (("exact_match", "f1"), ("rougeL", "rouge1"), ("rouge2", "rouge1"))  # the first is at most the second
BERTSCORE = ("bertscore_precision", "bertscore_f1", "bertscore_recall")


def score_faults(scores: Mapping[str, float | None], empty_answers: float = 0.0) -> list[str]:
    """Sentences on means over rows that no predictions can have, by metric; all in points.

    By SQuAD v1.1's rules, "a" for "the" matches exactly and shares no word, as both normalize to nothing: `empty_answers` are
    the points of exact match that may come from such.
    """
    numbers = {name: score for name, score in scores.items() if score is not None}
    tolerances = {"exact_match": POINTS + empty_answers}
    sentences = [f"{name} is not a number" for name, score in scores.items() if score is None]
    sentences += [f"{name} is {score}" for name, score in numbers.items() if not 0 <= score <= 100 + POINTS]
    sentences += [
        f"{low} {numbers[low]} is above {high} {numbers[high]}"
        for low, high in ORDERED
        if {low, high} <= numbers.keys() and numbers[low] > numbers[high] + tolerances.get(low, POINTS)
    ]
    if numbers.keys() >= set(BERTSCORE):
        precision, f1, recall = (numbers[name] for name in BERTSCORE)
        if f1 > (precision + recall) / 2 + POINTS:  # a harmonic mean is on each row at most the arithmetic one
            sentences += [f"bertscore_f1 {f1} is above the mean of precision {precision} and recall {recall}"]
    return sentences


def impossible_figures(record: Record) -> list[str]:
    """Sentences on scores that no predictions can have, and on losses that are not numbers."""
    rows = record.data.rows["test"] if record.data else 0
    loss_faults = ["a loss is not a number"] if record.training and None in record.training.losses else []
    return score_faults(record.scores, empty_answers=100 / rows if rows else 0.0) + loss_faults  # one may be an article alone


def below_bounds(scores: Mapping[str, float | None], bounds: Mapping[str, float]) -> list[str]:
    """A sentence for every bound that the scores do not reach; a missing score is below every bound."""
    comparisons = [(name, scores.get(name), bound) for name, bound in bounds.items()]
    return [
        f"{name} was not measured, its bound is {bound:.1f}" if score is None else f"{name} {score:.1f} is below {bound:.1f}"
        for name, score, bound in comparisons
        if score is None or not score >= bound
    ]


def missed_bounds_alone(record: Record) -> bool:
    """Whether scores below their bounds are all that is wrong: training noise does that, too, and another seed tells."""
    misses = below_bounds(record.scores, record.bounds)
    all_measured = all(record.scores.get(name) is not None for name in record.bounds)
    return record.finished and all_measured and 0 < len(misses) == len(record.missed)


def failed_audits(findings: Iterable[AuditFinding], excused: Collection[str] = ()) -> list[str]:
    """What each audit that failed saw, but for those that do not count."""
    counts = (finding for finding in findings if not finding.passed and finding.name not in excused)
    return [f"audit {finding.name}: {finding.detail}" for finding in counts]


# The audits that need a run of some length: no other may fail without counting.
NEED_LENGTH = ("weights_moved", "generation_not_truncated", "predictions_not_collapsed", "learned_something")
# Audits that every scored cell of the study has, and those of its task, its adapter and its quantization; some have more.
EVERY_CELL = (
    *("checkpoint_loaded", "heads_trainable", "adapters_where_declared", "quantized_as_declared", "drawn_from_the_seed"),
    *("labels_are_targets", "no_leakage", "weights_moved", "trains_in_fp32", "optimizer_steps_as_defined"),
    *("schedule_counts_updates", "loss_is_the_tasks", "predicting_twice_is_the_same", "rows_alone_as_in_batch"),
    *("gradients_reach", "gradients_survive_evaluation", "prompt_intact_at_inference", "metric_invariants"),
    *("learned_something", "saved_is_served"),
)
PART_AUDITS = {
    "sa": ("scored_alone_as_in_batch",),
    "qa": ("answers_at_annotated_start", "offsets_show_their_tokens", "windows_map_to_examples", "scored_alone_as_in_batch"),
    "sum": ("decoder_sees_no_future", "cache_changes_nothing", "texts_are_the_models", "generation_not_truncated"),
    "adapter": ("base_frozen", "adapters_add_as_declared", "adapter_survives_its_switches"),
    "quantization": ("packed_from_checkpoint", "packed_layers_compute_as_declared"),
}
FINISHED, BEGUN, TRAINED = get_args(Finished), ("begun", "failed"), (*SCORED, "footprint")
NEEDED = (  # which parts a record of these statuses and profiles has
    ((*FINISHED, *BEGUN, "stopped"), TRAINED, ("device", "model", "parameters", "training", "memory", "throughput")),
    (FINISHED, SCORED, ("data", "evaluation")),
    (FINISHED, ("footprint",), ("flops",)),
    (BEGUN, TRAINED, ("data",)),
)
UNSUCCESSFUL = ("unconfirmed", "missed", "audit", "failed", "stopped", "error", "killed", "not run")


def contradictions(record: Record) -> Iterator[str]:
    """A sentence for everything in a record that does not fit its status or its other fields: every reader asks here."""
    names = f"{record.backbone}_{record.task}_{record.method}"
    if record.cell != names:
        yield f"cell is {record.cell}, but backbone, task and method are {names}"
    if method := next((one for one in METHODS if one.id == record.method), None):  # none of the zoo or of a user
        for part, is_needed in (("adapter", method.adapts), ("quantization", method.quantization is not None)):
            if is_needed != (getattr(record.recipe, part) is not None):
                yield f"recipe.{part} is {'null' if is_needed else 'set'}, which does not fit method {record.method}"
    task = next((one for one in TASKS if one.id == record.task), None)
    if task and record.main_score != task.main_score:
        yield f"main_score is {record.main_score!r}, but that of task {task.id} is {task.main_score!r}"
    if record.main_score not in record.bounded_scores:
        yield f"main_score {record.main_score!r} is not among bounded_scores, by which gates judge"
    failed = {finding.name for finding in record.audits if not finding.passed}
    for name in record.excused:
        if name not in failed:
            yield f"excused has {name}, which is not a failed audit"
        elif name not in NEED_LENGTH:
            yield f"excused has {name}, which no short run excuses"
    if (confirms := record.seeds.confirms) is not None and record.seeds.seed != confirms + CONFIRMING:
        yield f"seeds.seed is {record.seeds.seed}, but the seed that confirms seed {confirms} is {confirms + CONFIRMING}"
    # Updates and losses, shares and counts, memory, rows and limits.
    if training := record.training:
        if training.updates != len(training.losses):
            yield f"training.updates is {training.updates}, but training.losses has {len(training.losses)}"
        if training.chosen_epoch is not None and training.chosen_epoch > len(training.epoch_scores):
            yield f"training.chosen_epoch is {training.chosen_epoch}, but {len(training.epoch_scores)} epochs were scored"
    if counts := record.parameters:
        percent = 100 * counts.trainable_params / counts.total_params
        if abs(counts.trainable_percent - percent) > PERCENT:
            yield f"parameters.trainable_percent is {counts.trainable_percent:.4g}, but {percent:.4g} by the counts"
    if record.peak_gib == 0:
        yield "memory.phases has no peak above 0 GiB"
    for split, rows in record.data.rows.items() if record.data else ():
        limit = getattr(record.limits, f"{split}_rows")
        if limit is not None and rows > limit:
            yield f"data.rows.{split} is {rows}, but limits.{split}_rows is {limit}"
    yield from _status_faults(record)
    if record.status == "passed":
        yield from _success_faults(record)


def _status_faults(record: Record) -> Iterator[str]:
    """A cell has the parts of its profile and status; one that did not pass says why."""
    clause = f"but the status is {record.status!r}"
    for statuses, profiles, names in NEEDED:
        if record.status in statuses and record.profile in profiles:
            yield from (f"{name} is null, {clause}" for name in names if getattr(record, name) is None)
    if record.finished and not record.audits:
        yield f"audits is empty, {clause}"
    if record.status in UNSUCCESSFUL and not record.missed:
        yield f"missed is empty, {clause}"
    if record.status == "audit" and not failed_audits(record.audits, record.excused):
        yield f"no audit failed, {clause}"
    if record.status == "unconfirmed" and not missed_bounds_alone(record):
        yield f"not only bounds were missed, {clause}"
    if record.finished and record.training and record.training.stopped is not None:
        yield f"training.stopped tells why it ended early, {clause}"
    updates = record.first_updates
    if (updates is None) == (record.status in BEGUN):
        yield f"first_updates is {'null' if updates is None else updates}, {clause}"
    if updates is not None:  # nothing is scored then
        if record.training and record.training.updates != updates:
            yield f"first_updates is {updates}, but training.updates is {record.training.updates}"
        scored_parts = [name for name in ("evaluation", "scores", "examples", "bounds") if getattr(record, name)]
        yield from (f"{name} is set, but after the first updates nothing is scored" for name in scored_parts)


def _success_faults(record: Record) -> Iterator[str]:
    """A cell that passed made all its updates, met all, and was whole if bounds were applied to it."""
    clause, updates = "but the status is 'passed'", record.training.updates if record.training else None
    if record.missed:
        yield f"missed holds sentences, {clause}"
    if record.evaluation and record.scores.get(record.main_score) is None:
        yield f"scores has no {record.main_score}, {clause}"
    recipe = record.recipe
    fewest = min(recipe.min_steps or recipe.max_steps, recipe.max_steps or recipe.min_steps)  # max_steps limits both
    if updates is not None and updates < max(fewest, 1):
        yield f"training.updates is {updates}, but the recipe's are {fewest or 'epochs'}, {clause}"
    if record.bounds and record.seeds.perturbation is None:  # of a moved start, no audit can say that it is the checkpoint's
        parts = {record.task, *(name for name in ("adapter", "quantization") if getattr(record.recipe, name) is not None)}
        expected = (*EVERY_CELL, *(name for part in sorted(parts) for name in PART_AUDITS.get(part, ())))
        missing_audits = set(expected).difference(finding.name for finding in record.audits)
        if missing_audits and record.cell in STUDY_IDS and record.ranks is None:
            yield f"audits lacks {min(missing_audits)}, which every whole run of {record.cell} has"
        limits = [name for name, value in vars(record.limits).items() if name != "own_test" and value]
        yield from (f"limits.{name} is set, but bounds apply to whole runs only" for name in limits)
        yield from (f"excused has {name}, but bounds apply to whole runs, which are long enough" for name in record.excused)
    flaws = (
        *failed_audits(record.audits, record.excused),
        *below_bounds(record.scores, record.bounds),
        *impossible_figures(record),
    )
    yield from (f"the status is 'passed', but {sentence}" for sentence in flaws)
