"""Judges what was measured beside scores: robustness and forgetting, the libraries' own path, the NLL of confidences.

Robustness and forgetting: equal losses mean equal weights, and then equal figures. Where rounding drove two trainings apart,
figures may differ as far as those of trainings do whose starts differ in their last digits. Runs of other seeds are not held to
each other. The libraries' own path: both records hold hashes of ids and texts, and figures. A hash is another or it is not;
figures may differ by rounding, as those of numerics (`benchmarks/thresholds/numerics.toml`); the first stage that changed is
named. NLL, of which higher is worse: runs of one seed that are one training but for rounding pair row by row, and the interval
comes from resampled rows. Runs of other trainings need seeds: then the mean NLL of each is held to the noise between them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from tunegrid.record import Record
from tunegrid.record.instruments import ForgettingRecord, ShiftedRecord
from tunegrid.record.stock import STOCK_STAGES, StockRecord, StockStage
from tunegrid.results.calibration import Forecasts, forecasts_of
from tunegrid.results.examples import read
from tunegrid.results.judgements import Judgement, Verdict, judgement_of
from tunegrid.results.noise import PERTURBED, deviation
from tunegrid.results.numerics import FINE, Tolerances, losses, not_comparable, tolerance_of
from tunegrid.results.quality import Rows, pairings
from tunegrid.results.statistics import ALPHA, bootstrap_p, by_training, holm, interval, resampled_means

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


# By which of the tolerances of numerics a stage's figures are held, and whether these are shares of the old ones.
STOCK_FIGURES: Mapping[str, tuple[str, bool]] = {
    "loss": ("first", False),
    "gradient": ("gradients", True),
    "rates": ("gradients", True),
    "losses": ("later", False),
    "weights": ("moved", True),
    "accumulation": ("later", False),
    "resume": ("later", False),
    "scores": ("later", False),
}
EXACT = ("windows", "start", "labels", "batch", "order")  # stages whose hashes do not depend on rounding


def compared_paths(old: Record, new: Record, tolerances: Tolerances) -> tuple[Verdict, str]:
    """The verdict on two records of a cell, and a sentence's part: the first stage of the libraries' path that changed."""
    if reason := _no_paths(old, new, tolerances):
        return Verdict.NOT_COMPARABLE, reason
    assert old.stock, "checked above"
    assert new.stock, "checked above"
    allowed = tolerance_of(old.cell, arithmetic(old), tolerances)
    exact = (*EXACT, "generation", "pipeline") if arithmetic(old) == FINE else EXACT
    for name in STOCK_STAGES:
        if change := _changed(name, old.stock, new.stock, allowed, exact):
            return Verdict.CHANGED, f"{name}: {change}"
    equal = _figures(old.stock) == _figures(new.stock)
    return (Verdict.EQUAL, "all figures are equal") if equal else (Verdict.ROUNDING, "figures differ by rounding")


def _no_paths(old: Record, new: Record, tolerances: Tolerances) -> str:
    """Why the paths of two records cannot be held to each other; empty where they can."""
    if not old.stock or not new.stock:
        return "no libraries' path was run"
    if refused := old.stock.refused or new.stock.refused:
        return refused
    if old.seeds != new.seeds:
        return "no run of the same seed"
    if old.recipe != new.recipe or old.limits != new.limits:
        return "other recipes or limits"
    if old.data and new.data and old.data.fingerprint != new.data.fingerprint:
        return "other rows"
    if arithmetic(old) not in tolerances:
        return f"no tolerance was measured for {arithmetic(old)}"
    return ""


def arithmetic(record: Record) -> str:
    """What rounding depends on, as numerics names it: the precision that the recipe asks for, over a packed base or not."""
    return f"nf4 {record.recipe.precision}" if record.recipe.quantization else record.recipe.precision


def _figures(path: StockRecord) -> Mapping[str, tuple[str | None, Sequence[float | None]]]:
    """What the path did, without how far ours is from it."""
    return {name: (stage.digest, stage.figures) for name, stage in path.stages.items()}


def _changed(name: str, old: StockRecord, new: StockRecord, allowed: Mapping[str, float], exact: Sequence[str]) -> str:
    before, after = old.stages.get(name), new.stages.get(name)
    if before is None and after is None:
        return ""
    said = new.differs.partition(": ")[2] if new.differs and new.differs.startswith(f"{name}: ") else ""
    if before is None or after is None:
        where = (new if after is None else old).differs or "it was not compared"
        return f"compared in one run alone; in the other, {where}"
    if said and not (old.differs or "").startswith(f"{name}: "):
        return f"{said}; it did not differ from ours before"
    if name in exact and before.digest != after.digest:
        return said or "ids, names or texts are others"
    return _other_figures(before, after, *STOCK_FIGURES[name], allowed) if name in STOCK_FIGURES else ""


def _other_figures(before: StockStage, after: StockStage, figure: str, share: bool, allowed: Mapping[str, float]) -> str:
    if len(before.figures) != len(after.figures):
        return f"{len(after.figures)} figures, there were {len(before.figures)}"
    largest = max((abs(value) for value in before.figures if value is not None), default=0.0)
    for number, (old, new) in enumerate(zip(before.figures, after.figures, strict=True), 1):
        if old is None or new is None:
            if old is not new:
                return f"figure {number} is {_stock_shown(new)}, it was {_stock_shown(old)}"
        elif abs(new - old) > allowed[figure] * (largest if share else 1.0):
            return f"figure {number} is {_stock_shown(new)}, it was {_stock_shown(old)}"
    return ""


def _stock_shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.6g}"


QUANTITY = "nll"
UNTESTED = "the two are no one training, and one seed a side cannot tell its noise from a change: give both runs --seeds 0-4"


@dataclass(frozen=True, kw_only=True)
class Change:
    """By how much a cell's NLL changed, new minus old in nats, and the chance of it by noise alone."""

    record: Record
    before: float
    after: float
    low: float
    high: float
    p_worse: float
    p_better: float
    detail: str

    @property
    def nats(self) -> float:
        """Above 0, the new run knows worse when it is right."""
        return self.after - self.before


def judged_nll(cells: Sequence[Rows], margin: float, tolerances: Tolerances) -> Iterator[Judgement]:
    """A judgement on every cell whose runs both have confidences; cells together are called worse falsely in 5 % (Holm)."""
    known = [(rows, pairs) for rows in cells if (pairs := _forecasts(rows))]
    changes = [(rows, _change(rows, pairs, tolerances)) for rows, pairs in known]
    tested = {change.record.cell: change for _, change in changes if change}
    worse, better = (holm({cell: getattr(change, p) for cell, change in tested.items()}) for p in ("p_worse", "p_better"))
    for rows, change in changes:
        record = rows.records[0][0]
        if change is None:
            yield judgement_of(record, QUANTITY, Verdict.NOT_COMPARABLE, detail=UNTESTED)
        else:
            yield _judgement(change, worse[record.cell], better[record.cell], margin, len(rows.new))


def _forecasts(rows: Rows) -> list[tuple[Forecasts, Forecasts]]:
    """The paired runs of a cell; empty where any has no confidences beside it."""
    pairs = [(forecasts_of(read(old, rows.old_path)), forecasts_of(read(new, rows.new_path))) for old, new in rows.records]
    return [(old, new) for old, new in pairs if old and new] if all(old and new for old, new in pairs) else []


def _change(rows: Rows, pairs: Sequence[tuple[Forecasts, Forecasts]], tolerances: Tolerances) -> Change | None:
    """How the NLL changed; None where nothing tells the noise of training from a change."""
    if pairings(rows.old, rows.new, tolerances)[0].kind == PERTURBED:
        return _by_rows(rows.records[0][0], pairs)
    every = [forecasts_of(read(record, rows.old_path)) for record in rows.old.values()]
    return _by_seeds(rows.records[0][0], [_nll(one) for one in every if one], [_nll(after) for _, after in pairs])


def _nll(forecasts: Forecasts) -> float:
    return float(forecasts.nll.mean())


def _by_rows(record: Record, pairs: Sequence[tuple[Forecasts, Forecasts]]) -> Change:
    changes = np.mean([after.nll - before.nll for before, after in pairs], axis=0)
    means = resampled_means(changes)
    low, high = interval(means)
    p_lower, p_higher = bootstrap_p(float(changes.mean()), means)
    return Change(
        record=record,
        before=fmean(_nll(before) for before, _ in pairs),
        after=fmean(_nll(after) for _, after in pairs),
        low=low,
        high=high,
        p_worse=p_higher,
        p_better=p_lower,
        detail=f"{len(changes)} rows, paired",
    )


def _by_seeds(record: Record, old: Sequence[float], new: Sequence[float]) -> Change | None:
    noise = deviation([old, new])
    if noise is None or not noise.sd:
        return None
    error = noise.sd * (1 / len(old) + 1 / len(new)) ** 0.5
    gain = by_training(fmean(old) - fmean(new), error, noise.df, rows=1, flips=None)  # of what falls where it gets worse
    return Change(
        record=record,
        before=fmean(old),
        after=fmean(new),
        low=-gain.high,
        high=-gain.low,
        p_worse=gain.p_worse,
        p_better=gain.p_better,
        detail=f"{len(old)} and {len(new)} seeds: error {error:.3f}",
    )


def _judgement(change: Change, p_worse: float, p_better: float, margin: float, seeds: int) -> Judgement:
    same = Verdict.SAME if change.high < margin else Verdict.CANNOT_TELL
    verdict = Verdict.BETTER if p_better < ALPHA and change.nats < 0 else same
    verdict = Verdict.WORSE if p_worse < ALPHA and change.nats >= margin else verdict
    judgement = judgement_of(change.record, QUANTITY, verdict, before=change.before, after=change.after, effect=change.nats)
    detail = f"{change.detail}; margin {margin:.2f}"
    return replace(judgement, low=change.low, high=change.high, p=p_worse, margin=margin, seeds=seeds, detail=detail)
