"""Says, as sentences, what in a record is wrong: audits that failed, bounds missed, figures that cannot be true."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.recipes import CONFIRMING
from tunegrid.record.record import AuditFinding, Record

POINTS = 1e-6  # what rounding may do to a score
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
    *("checkpoint_loaded", "adapters_where_declared", "quantized_as_declared", "drawn_from_the_seed"),
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


def contradictions(record: Record) -> Iterator[str]:
    """Sentences on what honest code may get wrong; a seal shows whether somebody changed a record."""
    confirms = record.seeds.confirms
    if confirms is not None and record.seeds.seed != confirms + CONFIRMING:
        yield f"seeds.seed is {record.seeds.seed}, but the seed that confirms seed {confirms} is {confirms + CONFIRMING}"
    # Of a moved start, no audit can say that it is the checkpoint's. Ranks have fewer audits.
    is_whole = record.bounds and record.seeds.perturbation is None and record.ranks is None
    if record.status == "passed" and is_whole and record.cell in STUDY_IDS:
        missing = expected_audits(record).difference(finding.name for finding in record.audits)
        if missing:
            yield f"audits lacks {min(missing)}, which every whole run of {record.cell} has"


def expected_audits(record: Record) -> set[str]:
    """The audits that every whole run of a cell of the study has."""
    names = {*EVERY_CELL, *PART_AUDITS.get(record.task, ())}
    for part in ("adapter", "quantization"):
        if getattr(record.recipe, part) is not None:
            names.update(PART_AUDITS[part])
    return names
