"""Says, as sentences, which scores or points of rows are impossible whatever was predicted."""

from collections.abc import Mapping

POINTS = 1e-6  # what rounding may do to a score
ORDERED = (("exact_match", "f1"), ("rougeL", "rouge1"))  # on each row the first is at most the second
ORDERED_MEANS = (*ORDERED, ("rouge2", "rouge1"))  # on average only: a repeated bigram can break it on a row
BERTSCORE = ("bertscore_precision", "bertscore_f1", "bertscore_recall")


def impossible(scores: Mapping[str, float | None], empty_answers: float = 0.0) -> list[str]:
    """Sentences on means over rows that no predictions can have.

    Args:
        scores: points by metric.
        empty_answers: the points of exact match that may come from answers such as "a" for "the". By SQuAD v1.1's rules both
            normalize to nothing, so that they match exactly and share no word: EM 100, F1 0.
    """
    numbers = {name: score for name, score in scores.items() if score is not None}
    sentences = [f"{name} is not a number" for name, score in scores.items() if score is None]
    sentences += [f"{name} is {score}" for name, score in numbers.items() if not 0 <= score <= 100 + POINTS]
    sentences += [
        f"{low} {numbers[low]} is above {high} {numbers[high]}"
        for low, high in ORDERED_MEANS
        if low in numbers and high in numbers and numbers[low] > numbers[high] + allowed(low, empty_answers)
    ]
    return sentences + _impossible_bertscore(numbers)


def allowed(low: str, empty_answers: float) -> float:
    """By how many points a score may be above the one that it is normally at most."""
    return POINTS + (empty_answers if low == "exact_match" else 0.0)


def _impossible_bertscore(scores: Mapping[str, float]) -> list[str]:
    """F1 is a harmonic mean, so on each row, and on average, it is at most the arithmetic one."""
    if not all(name in scores for name in BERTSCORE):
        return []
    precision, f1, recall = (scores[name] for name in BERTSCORE)
    if f1 <= (precision + recall) / 2 + POINTS:
        return []
    return [f"bertscore_f1 {f1} is above the mean of precision {precision} and recall {recall}"]
