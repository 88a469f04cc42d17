"""Judges whether a model knows worse when it is right: one judgement per cell on the NLL of its confidences.

Runs of one seed that are one training but for rounding pair row by row, and the interval comes from resampled rows. Runs of
other trainings need seeds: then the mean NLL of each is held to the noise between them. Higher is worse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from tunegrid.record import Record
from tunegrid.results.calibration import Forecasts, forecasts_of
from tunegrid.results.examples import read
from tunegrid.results.judgements import Judgement, Verdict, judgement_of
from tunegrid.results.noise import PERTURBED, deviation
from tunegrid.results.numerics import Tolerances
from tunegrid.results.quality import Rows, pairings
from tunegrid.results.statistics import ALPHA, bootstrap_p, by_training, holm, interval, resampled_means

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
