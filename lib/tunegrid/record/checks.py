"""Checks records, and describes failed audits, missed bounds and impossible figures."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.recipes import CONFIRMING
from tunegrid.record.record import AuditFinding, Record

POINTS = 1e-6  # the largest rounding error of a score
# In each pair, the first score cannot exceed the second.
ORDERED = (("exact_match", "f1"), ("rougeL", "rouge1"), ("rouge2", "rouge1"))
BERTSCORE = ("bertscore_precision", "bertscore_f1", "bertscore_recall")


def score_faults(scores: Mapping[str, float | None], empty_answers: float = 0.0) -> list[str]:
    """A sentence for each mean score that is not a number, is out of range, or contradicts another.

    `empty_answers` is the number of exact-match points that may come from answers without words.
    Under SQuAD v1.1's rules, "a" and "the" both normalize to nothing, so they match exactly but
    share no word.
    """
    numbers = {name: score for name, score in scores.items() if score is not None}
    sentences = [f"{name} is not a number" for name, score in scores.items() if score is None]
    for name, score in numbers.items():
        if not 0 <= score <= 100 + POINTS:
            sentences.append(f"{name} is {score}")
    for low, high in ORDERED:
        tolerance = POINTS + empty_answers if low == "exact_match" else POINTS
        if {low, high} <= numbers.keys() and numbers[low] > numbers[high] + tolerance:
            sentences.append(f"{low} {numbers[low]} is above {high} {numbers[high]}")
    if numbers.keys() >= set(BERTSCORE):
        precision, f1, recall = (numbers[name] for name in BERTSCORE)
        # A row's F1 is a harmonic mean, which cannot exceed the arithmetic mean.
        if f1 > (precision + recall) / 2 + POINTS:
            means = f"precision {precision} and recall {recall}"
            sentences.append(f"bertscore_f1 {f1} is above the mean of {means}")
    return sentences


def impossible_figures(record: Record) -> list[str]:
    """Sentences about losses that are not numbers and about impossible or contradictory scores."""
    rows = record.data.rows["test"] if record.data else 0
    empty_answers = 100 / rows if rows else 0.0  # one answer may be a bare article
    sentences = score_faults(record.scores, empty_answers)
    if record.training and None in record.training.losses:
        sentences.append("a loss is not a number")
    return sentences


def below_bounds(scores: Mapping[str, float | None], bounds: Mapping[str, float]) -> list[str]:
    """A sentence for each bound that the scores miss; a missing score counts as a miss."""
    sentences = []
    for name, bound in bounds.items():
        score = scores.get(name)
        if score is None:
            sentences.append(f"{name} was not measured, its bound is {bound:.1f}")
        elif not score >= bound:
            sentences.append(f"{name} {score:.1f} is below {bound:.1f}")
    return sentences


def missed_bounds_alone(record: Record) -> bool:
    """Checks whether scores below their bounds are the record's only faults.

    Training noise alone can cause such misses, so another seed decides.
    """
    misses = below_bounds(record.scores, record.bounds)
    all_measured = all(record.scores.get(name) is not None for name in record.bounds)
    return record.finished and all_measured and 0 < len(misses) == len(record.missed)


def failed_audits(findings: Iterable[AuditFinding], excused: Collection[str] = ()) -> list[str]:
    """A sentence for each failed audit that is not excused."""
    sentences = []
    for finding in findings:
        if not finding.passed and finding.name not in excused:
            sentences.append(f"audit {finding.name}: {finding.detail}")
    return sentences


# The audits that need a run of some length. A failure of any other audit always counts.
NEED_LENGTH = (
    "weights_moved",
    "generation_not_truncated",
    "predictions_not_collapsed",
    "learned_something",
)
# Audits that every scored cell of the study has. PART_AUDITS holds those that depend on its task,
# adapter and quantization.
EVERY_CELL = (
    "checkpoint_loaded",
    "adapters_where_declared",
    "quantized_as_declared",
    "drawn_from_the_seed",
    "labels_are_targets",
    "no_leakage",
    "weights_moved",
    "trains_in_fp32",
    "optimizer_steps_as_defined",
    "schedule_counts_updates",
    "loss_is_the_tasks",
    "predicting_twice_is_the_same",
    "rows_alone_as_in_batch",
    "gradients_reach",
    "gradients_survive_evaluation",
    "prompt_intact_at_inference",
    "metric_invariants",
    "learned_something",
    "saved_is_served",
)
PART_AUDITS = {
    "sa": ("scored_alone_as_in_batch",),
    "qa": (
        "answers_at_annotated_start",
        "offsets_show_their_tokens",
        "windows_map_to_examples",
        "scored_alone_as_in_batch",
    ),
    "sum": (
        "decoder_sees_no_future",
        "cache_changes_nothing",
        "texts_are_the_models",
        "generation_not_truncated",
    ),
    "adapter": ("base_frozen", "adapters_add_as_declared", "adapter_survives_its_switches"),
    "quantization": ("packed_from_checkpoint", "packed_layers_compute_as_declared"),
}


def contradictions(record: Record) -> Iterator[str]:
    """Yields a sentence for each contradiction within a record; they reveal bugs, not tampering."""
    confirms = record.seeds.confirms
    if confirms is not None and record.seeds.seed != confirms + CONFIRMING:
        expected = f"the seed that confirms seed {confirms} is {confirms + CONFIRMING}"
        yield f"seeds.seed is {record.seeds.seed}, but {expected}"
    # Audits cannot compare a perturbed start with the checkpoint, and fewer audits run with ranks.
    is_whole = record.bounds and record.seeds.perturbation is None and record.ranks is None
    if record.status == "passed" and is_whole and record.cell in STUDY_IDS:
        missing = expected_audits(record).difference(finding.name for finding in record.audits)
        if missing:
            yield f"audits lacks {min(missing)}, which every whole run of {record.cell} has"


def expected_audits(record: Record) -> set[str]:
    """The names of the audits that every complete run of the record's study cell has."""
    names = {*EVERY_CELL, *PART_AUDITS.get(record.task, ())}
    for setting in ("adapter", "quantization"):
        if getattr(record.recipe, setting) is not None:
            names.update(PART_AUDITS[setting])
    return names
