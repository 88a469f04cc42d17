"""Finds runs that are too good to be true, by the baseline and the thresholds' evidence.

Leaked rows and a lost mask raise a score, and training that sees its targets learns faster than any seed of the baseline. It
may be a real gain as well, so it is shown, and fails a run only where that was asked for. MLPerf refuses submissions that
converge faster than its reference for this reason.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from scipy import special

from tunegrid import ROOT
from tunegrid.record import Record
from tunegrid.results.costs import Seeds
from tunegrid.results.judgements import Judgement, Verdict, judgement_of
from tunegrid.results.noise import deviation, kind_of_cell, mean_score
from tunegrid.results.numerics import losses

THRESHOLDS = ROOT / "benchmarks" / "thresholds"
QUANTITY = "learning"
CHANCE = 0.02  # that the losses of any cell of a healthy run fall so low; the same as that it misses a bound
LEAST = 0.1  # of the log of a mean loss, below what noise explains: one healthy seed of the baseline lies 0.05 below
ADVICE = "leaked rows, a lost mask?"
Cells = Mapping[str, tuple[Seeds, Seeds]]  # the baseline's records and the new ones
# By cell and score: minimum and mean of healthy runs, among others.
HealthyFalls = Mapping[str, Mapping[str, Mapping[str, float]]]


def evidence_of(profile: str, folder: Path = THRESHOLDS) -> HealthyFalls:
    """What a profile's bounds rest on; empty where it has none."""
    path = folder / f"{profile}.toml"
    cells: HealthyFalls = tomllib.loads(path.read_text())["cells"] if path.is_file() else {}
    return cells


def too_good(cells: Cells, evidence: HealthyFalls) -> Iterator[Judgement]:
    """A finding for every cell that scores, or learns, better than healthy runs do."""
    levels = {cell: (_levels(old), _levels(new)) for cell, (old, new) in cells.items() if _one_recipe(old, new)}
    for cell, (_, new) in cells.items():
        records = list(new.values())
        reasons = [_by_score(records, evidence.get(cell, {})), _by_losses(cell, levels)]
        if any(reasons):
            detail = f"{' and '.join(filter(None, reasons))}: {ADVICE}"
            yield judgement_of(records[0], QUANTITY, Verdict.TOO_GOOD, seeds=len(records), detail=detail)


def _by_score(records: Sequence[Record], evidence: Mapping[str, Mapping[str, float]]) -> str:
    """The main score, where it is as far above the mean of healthy runs as their bound is below it."""
    name = records[0].main_score
    known = evidence.get(name)
    if known is None or any(r.bounds.get(name) != known["minimum"] or r.scores.get(name) is None for r in records):
        return ""  # a recipe that was changed has no bound
    highest, score = 2 * known["mean"] - known["minimum"], mean_score(records, name)
    return f"{name} {score:.1f} is above {highest:.1f}, which healthy runs do not reach" if score > highest else ""


def _one_recipe(old: Seeds, new: Seeds) -> bool:
    """Whether all runs trained alike, so that their losses can be compared."""
    first, *others = [*old.values(), *new.values()]
    return all(record.recipe == first.recipe and record.limits == first.limits for record in others)


def _levels(seeds: Seeds) -> list[float]:
    """The log of each run's mean loss: the lower, the sooner it has learned. Runs whose losses are not numbers are left out."""
    means = [fmean(values) for record in seeds.values() if (values := losses(record))]
    return [math.log(mean) for mean in means if mean > 0]


def _by_losses(cell: str, levels: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """The mean loss, where it is below what the baseline's seeds explain: a t-test, with the deviation of cells of its kind."""
    old, new = levels.get(cell, ((), ()))
    noise = deviation([before for one, (before, _) in levels.items() if kind_of_cell(one) == kind_of_cell(cell)])
    if not old or not new or noise is None:
        return ""
    quantile = float(special.stdtrit(noise.df, 1 - CHANCE / len(levels)))
    lowest = fmean(old) - quantile * noise.sd * math.sqrt(1 / len(old) + 1 / len(new))
    if fmean(new) >= min(lowest, *old) - LEAST:
        return ""
    return f"the mean loss is {math.exp(fmean(new)):.3g}, the baseline's seeds explain no less than {math.exp(lowest):.3g}"
