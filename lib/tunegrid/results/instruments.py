"""Judges whether what an instrument measured changed between two records of one cell and seed: robustness, forgetting.

Equal losses mean equal weights, and then equal figures. Where rounding drove the two trainings apart, figures may differ as far
as those of trainings do whose starts differ in their last digits. Runs of other seeds are not held to each other here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tunegrid.record import Record
from tunegrid.record.parts import ForgettingRecord, ShiftedRecord
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import Tolerances, losses, not_comparable

Figures = Mapping[str, float | None]


def of_shifts(part: ShiftedRecord) -> Figures:
    """Points won or lost by shift, points of plain rows, and percent of the pairs that are right."""
    figures = {name: shift.change.value for name, shift in part.shifts.items()}
    for name, contrast in part.contrasts.items():
        figures |= {name: 100 * contrast.both / contrast.pairs, f"{name}, right": 100 * contrast.right / contrast.pairs}
    return {"plain": part.score} | figures


def of_forgetting(part: ForgettingRecord) -> Figures:
    """The backbone's loss before training, and by how much it changed."""
    estimates = {"before": part.before, "change": part.change}
    return {name: one.value if one else None for name, one in estimates.items()}


# By the part's name in a record: its figures, and how far apart they may lie where rounding drove the trainings apart. Chosen
# wide: four quick cells in fp32 (bert_qa_lora, bert_sa_sft, gpt2_sa_sft, t5_sum_sft), trained again with a start that differs
# by 1e-6 of itself, had equal drops. Packed bases, bf16 and GPUs were not measured, nor was forgetting.
FIGURES: Mapping[str, tuple[Callable[[Any], Figures], float]] = {
    "shifted": (of_shifts, 10.0),
    "forgetting": (of_forgetting, 0.1),
}


def compared_part(name: str, old: Record, new: Record, tolerances: Tolerances) -> tuple[Verdict, str]:
    """The verdict on one instrument's part of two records, and a sentence's part: which figure is furthest off."""
    before, after = getattr(old, name), getattr(new, name)
    if before is None or after is None:
        return Verdict.NOT_COMPARABLE, "not measured in both runs"
    if reason := not_comparable(old, new, tolerances):
        return Verdict.NOT_COMPARABLE, reason
    if name == "forgetting" and (before.texts, before.tokens) != (after.texts, after.tokens):
        return Verdict.NOT_COMPARABLE, "other texts were asked"
    figures, rounded = FIGURES[name]
    gap, told = _furthest(figures(before), figures(after))
    if gap == 0:
        return Verdict.EQUAL, "all figures are equal"
    if losses(old) == losses(new):
        return Verdict.CHANGED, f"{told}, and all losses are equal"
    return (Verdict.CHANGED if gap > rounded else Verdict.ROUNDING), told


def _furthest(before: Figures, after: Figures) -> tuple[float, str]:
    """How far the figures lie apart at most, and which; a figure that one of the two lacks is as far off as any."""
    gaps = {name: _gap(before.get(name), after.get(name)) for name in {**before, **after}}
    worst = max(gaps, key=lambda name: gaps[name], default="")
    return gaps.get(worst, 0.0), f"{worst}: {_shown(after.get(worst))}, it was {_shown(before.get(worst))}"


def _gap(before: float | None, after: float | None) -> float:
    if before is None or after is None:
        return 0.0 if before is after else float("inf")
    return abs(after - before)


def _shown(figure: float | None) -> str:
    return "not there" if figure is None else f"{figure:+.4g}"
