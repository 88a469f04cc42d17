"""Says how well a model knows when it is right: confidences and hits of rows give figures, one temperature, a diagram's bins.

A hit is a prediction that is right; its confidence is the probability that the model gives it. Each row is so one forecast of
one event, whatever the task: with two labels, Brier score and NLL are those of the labels. ECE is the mean distance of
confidence and share of hits over bins (Guo et al. 2017, "On Calibration of Modern Neural Networks"). It is never 0 on few rows,
so the one that chance alone would give is stated beside it, and a difference of two runs is judged by NLL, which has no bins.
Needs numpy and scipy, no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy import optimize

from tunegrid.record import Record
from tunegrid.record.instruments import CalibrationFigures, CalibrationRecord
from tunegrid.record.parts import Estimate
from tunegrid.results.examples import Examples
from tunegrid.results.run_table import by_cell
from tunegrid.results.statistics import CHUNKS, SEED, Array, interval, resampled_means, resampled_sums, share_interval

HITS = ("accuracy", "exact_match")  # scores of which a row has 100 points or 0: whether its prediction is right
BINS = 15
SURE = 1e-12  # a probability is kept so far from 0 and 1: a sure miss costs 27.6 nats, not infinity
HOTTEST = 16.0  # the largest temperature that is tried, and 1 over the smallest
CLOSE = 1e-4  # how closely its logarithm is found
SIMULATED = 1000  # runs of a calibrated model, whose mean ECE is the one by chance
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Rows that a model answered: the probability it gave each answer, and whether that was right (1) or not (0)."""

    confidences: Array
    hits: Array

    @classmethod
    def of(cls, confidences: Sequence[float], points: Sequence[float]) -> "Forecasts":
        """A row with 100 points is a hit."""
        return cls(confidences=np.asarray(confidences, float), hits=(np.asarray(points) == 100).astype(float))

    @property
    def gaps(self) -> Array:
        """Confidence minus hit of each row."""
        return self.confidences - self.hits

    @property
    def nll(self) -> Array:
        """Nats of each row: minus the log of what was said of its outcome."""
        said = np.where(self.hits == 1, self.confidences, 1 - self.confidences)
        return -np.log(np.maximum(said, SURE))


def hits_of(points: Iterable[str]) -> str | None:
    """Which of these scores says whether a prediction is right; None where none does."""
    return next((name for name in points if name in HITS), None)


def forecasts_of(examples: Examples | None) -> Forecasts | None:
    """The rows beside a run as forecasts; None where they hold no confidence."""
    name = hits_of(examples.points) if examples else None
    if not examples or not examples.confidences or name is None:
        return None
    return Forecasts.of(examples.confidences, examples.points[name])


# Figures


def figures_of(rows: Forecasts) -> CalibrationFigures:
    """All figures of some rows, each with its interval."""
    return CalibrationFigures(
        confidence=100 * float(rows.confidences.mean()),
        ece=_ece(rows.gaps, equal_widths(rows.confidences)),
        adaptive_ece=_ece(rows.gaps, equal_masses(rows.confidences)),
        expected_ece=expected_ece(rows.confidences),
        brier=_mean(rows.gaps**2),
        nll=_mean(rows.nll),
    )


def equal_widths(confidences: Array) -> Indices:
    """The number of each row's bin, where all bins are equally wide."""
    numbers: Indices = np.minimum((confidences * BINS).astype(int), BINS - 1)
    return numbers


def equal_masses(confidences: Array) -> Indices:
    """The number of each row's bin, where all bins hold equally many rows (Nguyen and O'Connor 2015)."""
    ranks = np.empty(len(confidences), int)
    ranks[np.argsort(confidences, kind="stable")] = np.arange(len(confidences))
    return ranks * BINS // len(confidences)


def _distances(sums: Array, rows: int) -> Array:
    """ECE in points of each line of sums of gaps by bin."""
    distances: Array = 100 * np.abs(sums).sum(-1) / rows
    return distances


def _ece(gaps: Array, bins: Indices) -> Estimate:
    """ECE of these bins. Resampling adds the distance that chance adds once more, so its interval is reflected at the figure.

    That is the basic bootstrap (Davison and Hinkley 1997, chapter 5); it is widened to hold the figure itself.
    """
    by_bin = gaps[:, None] * np.eye(BINS)[bins]
    value = float(_distances(by_bin.sum(0), len(gaps)))
    low, high = interval(_distances(resampled_sums(by_bin), len(gaps)))
    return Estimate(value=value, low=max(0.0, min(value, 2 * value - high)), high=max(value, 2 * value - low))


def _mean(values: Array) -> Estimate:
    value = float(values.mean())
    low, high = interval(resampled_means(values))
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def expected_ece(confidences: Array) -> float:
    """The mean ECE, over equal widths, of rows that are hits with just their confidence: what few rows show by chance."""
    rng, rows = np.random.default_rng(SEED), len(confidences)
    bins = np.eye(BINS)[equal_widths(confidences)]
    draws = ((confidences - (rng.random((SIMULATED // CHUNKS, rows)) < confidences)) @ bins for _ in range(CHUNKS))
    return float(np.mean([_distances(sums, rows).mean() for sums in draws]))


# Temperature

At = Callable[[float], Forecasts]  # the same rows, their scores divided by a temperature


def fitted(forecast: At) -> float | None:
    """The temperature at which rows have the least NLL; None where all are hits, or all misses: then none is the best one.

    The search is Brent's, on the logarithm. Where it finds nothing better than 1, it is 1.
    """
    plain = forecast(1.0)
    if len(set(plain.hits)) < 2:
        return None
    edge = float(np.log(HOTTEST))
    options = {"bounds": (-edge, edge), "method": "bounded", "options": {"xatol": CLOSE}}
    best = optimize.minimize_scalar(lambda log: forecast(float(np.exp(log))).nll.mean(), **options)
    return float(np.exp(best.x)) if best.fun < plain.nll.mean() else 1.0


def calibration(hits: str, test: At, validation: At | None) -> CalibrationRecord:
    """The record's part.

    Args:
        hits: the score that says whether a prediction is right.
        test: the test rows at a temperature.
        validation: the validation rows at one; None without any.
    """
    temperature = fitted(validation) if validation else None
    before, after = (
        float(validation(at).nll.mean()) if validation and temperature else None for at in (1.0, temperature or 1.0)
    )
    return CalibrationRecord(
        hits=hits,
        unscaled=figures_of(test(1.0)),
        scaled=figures_of(test(temperature)) if temperature else None,
        temperature=temperature,
        validation_rows=len(validation(1.0).hits) if validation else 0,
        validation_nll=before,
        scaled_validation_nll=after,
    )


# A diagram


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows of like confidence, in shares from 0 to 1.

    Attributes:
        low, high: the 95 % interval of the share of hits (Wilson 1927).
    """

    rows: int
    confidence: float
    hits: float
    low: float
    high: float


def reliability(runs: Sequence[Forecasts]) -> list[Bin]:
    """The bins of equal width that hold any row of these runs."""
    confidences, hits = (np.concatenate([getattr(run, name) for run in runs]) for name in ("confidences", "hits"))
    numbers = equal_widths(confidences)
    return [_bin(confidences[numbers == number], hits[numbers == number]) for number in np.unique(numbers)]


def _bin(confidences: Array, hits: Array) -> Bin:
    share = float(hits.mean())
    low, high = share_interval(share, len(hits))
    return Bin(rows=len(hits), confidence=float(confidences.mean()), hits=share, low=low, high=high)


# Lines of a table


@dataclass(frozen=True, kw_only=True)
class CalibrationLine:
    """A cell's figures, means over its seeds; None where nothing was measured.

    Attributes:
        confidence, hits: mean confidence and share of hits, in points.
        low, high: of the first seed's ECE.
        by_chance: the ECE that chance alone would give.
        scaled_ece, scaled_nll: at the temperature.
    """

    cell: str
    confidence: float
    hits: float | None
    ece: float
    low: float
    high: float
    by_chance: float
    adaptive: float
    brier: float
    nll: float
    temperature: float | None
    scaled_ece: float | None
    scaled_nll: float | None


def calibration_lines(records: Iterable[Record]) -> list[CalibrationLine]:
    """A line for each cell that says how sure it is, in the order of the records."""
    return [_line(seeds) for seeds in by_cell(record for record in records if record.calibration)]


def _line(seeds: Sequence[Record]) -> CalibrationLine:
    parts = [record.calibration for record in seeds if record.calibration]
    plain, scaled = [part.unscaled for part in parts], [part.scaled for part in parts if part.scaled]
    return CalibrationLine(
        cell=seeds[0].cell,
        confidence=fmean(one.confidence for one in plain),
        hits=_average(record.scores.get(part.hits) for record, part in zip(seeds, parts, strict=True)),
        ece=fmean(one.ece.value for one in plain),
        low=fmean(one.ece.low for one in plain),
        high=fmean(one.ece.high for one in plain),
        by_chance=fmean(one.expected_ece for one in plain),
        adaptive=fmean(one.adaptive_ece.value for one in plain),
        brier=fmean(one.brier.value for one in plain),
        nll=fmean(one.nll.value for one in plain),
        temperature=_average(part.temperature for part in parts),
        scaled_ece=_average(one.ece.value for one in scaled),
        scaled_nll=_average(one.nll.value for one in scaled),
    )


def _average(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return fmean(known) if known else None
