"""Compares methods by score and cost, and lists pairs that cannot be told apart.

Methods are compared within one backbone and task, based on the scores of the run's seeds on the
same test rows. The noise comes from calibration if that applies, otherwise from the run's own
seeds. Needs no torch.
"""

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, combinations, product
from statistics import fmean, stdev
from typing import NamedTuple

import pandas as pd
from scipy import special

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.gate.figures import SPEED_PACKAGES
from tunegrid.gate.noise import SEEDS, Noise, NoiseKey
from tunegrid.gate.statistics import ALPHA, POWER, holm
from tunegrid.grid.cells import study_place
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.record import Record
from tunegrid.record.checks import failed_audits, impossible_figures
from tunegrid.report.tables import Section
from tunegrid.runs.files import check_alike, read_list
from tunegrid.runs.frame import figure_frame
from tunegrid.terminal import strip_places
from tunegrid.words import count_text

# Costs; lower is better
TRAINED = "trained MiB"
TENSORS = "tensor MiB"
PEAK = "peak GiB"
SECONDS = "seconds"
ENTRY_COLUMNS = {
    "score": "score",
    TRAINED: "trained_mib",
    TENSORS: "tensor_mib",
    PEAK: "own_peak_gib",
    SECONDS: "own_seconds",
}
MEAN_SD = "mean ± sd"
PUBLISHED = ROOT / "reports" / "study.json"  # the scores that the study published
# Main scores that the study did not print, with the scores it printed instead
INSTEAD = {"rougeLsum": "rougeL"}
# Sources of the noise behind an interval
CALIBRATED = "calibrated noise"
OWN = "these seeds"
UNKNOWN = "unknown"
TOO_RARE = 0.001  # calibrated noise does not fit a scatter that it causes in fewer runs than this
MOST_PAIRS = 40  # shown in a table; the rest need more seeds than anybody has


class Error(NamedTuple):
    """A squared standard error."""

    variance: float  # in squared points
    df: float  # degrees of freedom of the estimate


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method's results on one backbone and task."""

    first: Record  # the first seed's record, read for whatever all seeds share
    scores: Sequence[float]  # the main score of each seed; at least one
    costs: Mapping[str, float]  # by name; NaN if unknown
    facts: Mapping[str, str]  # values of `FACTS` by name
    rows: set[str]  # hashes of the test rows
    # The error of the mean score that seed noise causes; None if the noise is unknown
    error: Error | None = None
    noise: str = UNKNOWN  # the source of the error

    @property
    def score(self) -> float:
        """The mean main score."""
        return fmean(self.scores)

    @property
    def mean_and_deviation(self) -> str | None:
        """The mean ± standard deviation over seeds, as papers print it; None for one seed."""
        if len(self.scores) < 2:
            return None
        return f"{self.score:.1f} ± {stdev(self.scores):.1f}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean score; None if the noise between seeds is unknown."""
        if self.error is None:
            return None
        reach = float(special.stdtrit(self.error.df, 1 - ALPHA / 2)) * self.error.variance**0.5
        return max(0.0, self.score - reach), min(100.0, self.score + reach)


def make_entry(records: Sequence[Record]) -> Entry:
    """Builds a cell's entry from its sound records."""
    frame = figure_frame(records, ENTRY_COLUMNS)
    costs = {
        TRAINED: frame[TRAINED].iloc[0],
        TENSORS: frame[TENSORS].iloc[0],
        PEAK: frame[PEAK].max(skipna=False),
        SECONDS: frame[SECONDS].mean(skipna=False),
    }
    facts = {}
    for name, fact in FACTS.items():
        values = {fact(record) for record in records}
        facts[name] = " and ".join(sorted(values))
    return Entry(
        first=records[0],
        scores=list(frame.score),
        costs=costs,
        facts=facts,
        rows={_row_hash(record) for record in records},
    )


def _row_hash(record: Record) -> str:
    """A hash that identifies a record's test rows; empty if unknown."""
    if record.examples:
        return record.examples.rows_hash
    return record.data.fingerprint if record.data else ""


def _count_updates(record: Record) -> str:
    """The number of updates and of rows per update, such as "300x16"."""
    updates = record.training.updates if record.training else "no"
    return f"{updates}x{record.recipe.rows_per_update}"


def _check_adapted(record: Record) -> str:
    """The adapted part: the backbone, or only the new head if no adapted layer was pretrained."""
    # A user's method may hold settings of any type.
    targets = (record.recipe.adapter or {}).get("target_modules")
    if not isinstance(targets, list) or not targets or not record.model:
        return "the backbone"
    is_head = set(map(str, targets)) <= set(record.model.adapted_modules)
    return "the new head alone" if is_head else "the backbone"


def _device(record: Record) -> str:
    """The device's name and number of threads."""
    if not record.device:
        return "unknown"
    return f"{record.device.name}, {record.device.threads or 'no'} threads"


def _versions(record: Record) -> str:
    """The versions of libraries that affect speed."""
    return ", ".join(f"{name} {record.versions.get(name)}" for name in SPEED_PACKAGES)


# Facts that comparable methods share, the budget first
FACTS: Mapping[str, Callable[[Record], str]] = {
    "updates": _count_updates,
    "precision": lambda record: record.training.precision if record.training else "unknown",
    "data": lambda record: record.data.fingerprint if record.data else "unknown",
    "adapted": _check_adapted,
    "search": lambda record: str(record.recipe.generation),
    "device": _device,
    "ranks": lambda record: record.processes,
    "libraries": _versions,
}


def p_value(difference: float, errors: Sequence[Error]) -> float:
    """The two-sided p-value of a difference between two means; 0 or 1 if all errors are 0."""
    total = sum(error.variance for error in errors)
    if not total:
        return float(difference == 0)
    return float(2 * special.stdtr(freedom(errors), -abs(difference) / total**0.5))


def freedom(errors: Sequence[Error]) -> float:
    """The degrees of freedom of a sum of variances, after Satterthwaite (1946) and Welch (1947).

    At least one variance must not be zero.
    """
    total = sum(error.variance for error in errors)
    return total**2 / sum(error.variance**2 / error.df for error in errors)


def add_errors(entries: Sequence[Entry], calibrated: Noise) -> list[Entry]:
    """The entries with the errors of their means, from calibrated noise or the run's own noise."""
    rows: dict[str, int] = {}
    scores: dict[NoiseKey, list[Sequence[float]]] = {}
    for entry in entries:
        first = entry.first
        if first.data:
            rows[first.task] = first.data.rows["test"]
            scores[first.cell, first.main_score] = [entry.scores]
    own = Noise(profile=entries[0].first.profile, rows=rows, scores={SEEDS: scores})
    return [add_error(entry, calibrated, own) for entry in entries]


def add_error(entry: Entry, calibrated: Noise, own: Noise) -> Entry:
    """The entry with the error of its mean; unchanged if its noise is unknown."""
    is_calibrated = calibrated_holds(entry, calibrated, own)
    noise = calibrated if is_calibrated else own
    first = entry.first
    spread = noise.find(SEEDS, first, first.main_score)
    if not spread:
        return entry
    points = spread.sd / noise.scale(first.cell, first.main_score).per_point(entry.score)
    error = Error(points**2 / len(entry.scores), spread.df)
    return replace(entry, error=error, noise=CALIBRATED if is_calibrated else OWN)


def calibrated_holds(entry: Entry, calibrated: Noise, own: Noise) -> bool:
    """Checks whether calibrated noise is known for an entry and not contradicted by its seeds.

    Calibrated noise usually comes from more seeds, and the gate uses it, too. But a run with
    several seeds uses the noise between these seeds if its method was not calibrated, or if the
    calibrated noise would make seeds scatter this much in fewer than one run in 1,000 (F-test).
    """
    first = entry.first
    spread = calibrated.find(SEEDS, first, first.main_score)
    if not spread:
        return False
    own_spread = own.spreads.get((SEEDS, first.cell, first.main_score))
    if not own_spread:
        return True
    is_own = any(noise.applies_to(first) for noise in calibrated.own)
    if not is_own and (first.cell, first.main_score) not in calibrated.scores[SEEDS]:
        return False
    ratio = (own_spread.sd / spread.sd) ** 2
    return bool(special.fdtrc(own_spread.df, spread.df, ratio) >= TOO_RARE)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The methods of one backbone and task, best score first."""

    task: str
    backbone: str
    entries: Mapping[str, Entry]

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """All pairs of methods, each with the better method first.

        The chance that any pair is told apart by mistake is at most 5 % (Holm).
        """
        rows = []
        for better, worse in combinations(self.entries.values(), 2):
            gap = better.score - worse.score
            reason = _untested_reason(better, worse)
            p = math.nan
            if better.error and worse.error and not reason:
                p = p_value(gap, [better.error, worse.error])
            rows.append((better.first.method, worse.first.method, gap, reason, p))
        frame = pd.DataFrame(
            rows, columns=["better", "other", "points apart", "not tested, since", "p"]
        )
        p_values = holm(frame.p.dropna().to_dict())
        is_apart = []
        seeds = []
        for index in frame.index:
            is_apart.append(p_values.get(index, 1.0) < ALPHA)
            needed = math.nan
            if index in p_values:
                needed = self.seeds_needed(frame.better[index], frame.other[index], len(p_values))
            seeds.append(needed)
        frame["apart"] = is_apart
        frame["seeds that tell"] = seeds
        return frame

    def seeds_needed(self, better: str, worse: str, tests: int) -> float:
        """The number of seeds per method needed to tell two methods apart four times in five.

        NaN if the scores are equal. Assumes that the degrees of freedom of the noise stay the same.
        """
        entries = [self.entries[better], self.entries[worse]]
        gap = entries[0].score - entries[1].score
        if not gap:
            return math.nan
        errors = []  # each method's error with one seed
        for entry in entries:
            if entry.error:
                variance = entry.error.variance * len(entry.scores)
                errors.append(Error(variance, entry.error.df))
        df = freedom(errors)
        noise = sum(error.variance for error in errors)
        quantiles = special.stdtrit(df, 1 - ALPHA / 2 / tests) + special.stdtrit(df, POWER)
        return math.ceil(noise * float(quantiles / gap) ** 2)

    @cached_property
    def costs(self) -> list[str]:
        """The names of the costs that are known for all methods.

        Tensors count only if the peak, which includes them, is unknown.
        """
        costs = pd.DataFrame([entry.costs for entry in self.entries.values()]).dropna(axis=1)
        return [name for name in costs if name != TENSORS or PEAK not in costs]

    def front(self, *costs: str) -> list[str]:
        """The Pareto front: methods that no other method dominates in score and `costs`."""
        figures = {}
        for method, entry in self.entries.items():
            figures[method] = -entry.score, *(entry.costs[name] for name in costs)
        front = []
        for method, own_figures in figures.items():
            if not any(dominates(rival, own_figures) for rival in figures.values()):
                front.append(method)
        return front


def _untested_reason(better: Entry, worse: Entry) -> str | None:
    """The reason why two methods are not tested; None if they are."""
    if len(better.rows | worse.rows) > 1:
        return "their test rows differ"
    methods = [entry.first.method for entry in (better, worse) if not entry.error]
    return f"the noise between seeds of {' or '.join(methods)} is unknown" if methods else None


def dominates(rival: Sequence[float], figures: Sequence[float]) -> bool:
    """Checks whether the rival is no greater in any figure and smaller in at least one."""
    return rival != figures and all(map(operator.le, rival, figures))


def why_left_out(record: Record) -> str:
    """The reason why a record is left out of the comparison; empty if it is compared."""
    if record.seeds.confirms is not None:
        return f"it only confirms or refutes the miss of seed {record.seeds.confirms}"
    if record.scores.get(record.main_score) is None:
        return strip_places(f"it has no {record.main_score}")
    faults = [*failed_audits(record.audits), *impossible_figures(record)]
    return strip_places(faults[0]) if faults else ""


def compare_methods(records: Iterable[Record], calibrated: Noise) -> list[Comparison]:
    """Compares the methods of each task and backbone, leaving out unfinished and faulty records.

    Raises InputError if no record is left or the records cannot be compared.
    """
    cells: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.finished and not why_left_out(record):
            cells[record.cell].append(record)
    profiles = sorted({seeds[0].profile for seeds in cells.values()})
    if len(profiles) > 1:
        raise InputError(f"cells of {' and '.join(profiles)}; compare one profile at a time")
    if not profiles:
        raise InputError(
            "no cell ran to its end and passed its audits, so there is nothing to compare"
        )
    check_alike(chain.from_iterable(cells.values()))
    groups: dict[tuple[str, str], dict[str, Entry]] = defaultdict(dict)
    entries = add_errors([make_entry(seeds) for seeds in cells.values()], calibrated)
    for entry in sorted(
        entries, key=lambda entry: (study_place(entry.first.cell)[:2], -entry.score)
    ):
        first = entry.first
        groups[first.task, first.backbone][first.method] = entry
    comparisons = []
    for (task, backbone), group in groups.items():
        comparisons.append(Comparison(task=task, backbone=backbone, entries=group))
    return comparisons


# In words

COLUMN_FORMATS = {
    "points": ".1f",
    MEAN_SD: "",
    "from": ".1f",
    "to": ".1f",
    "seeds": "",
    "study": ".1f",
    TRAINED: ".2f",
    TENSORS: ".1f",
    PEAK: ".2f",
    SECONDS: ".1f",
    "points apart": ".2f",
    "seeds that tell": ".0f",
}
LEGEND = (
    "points: the run's mean main score; sd: the standard deviation of its seeds; "
    "from, to: the 95 % interval over seeds.",
    "interval by: calibrated noise, of seeds that were calibrated by the same recipe; "
    "or the noise of these seeds.",
    "best: the best, or not told apart from it (Holm, 5 % a backbone); "
    "seeds that tell: seeds per method for a power of 80 %.",
    "trained: what training changes and a checkpoint keeps; "
    "tensor: weights, gradients and optimizer state.",
    "peak, seconds: only of processes that ran no other cell before (`--engine=process`), "
    "on a machine without other work.",
    "front: yes if no other method of the backbone is as good at no greater cost.",
)
OF_QUICK = (
    "The quick profile trains micro backbones, which say nothing of full-size models; "
    "its learning rates were found with test "
    "scores in view (reports/tuning-quick-cpu.md)."
)


def sections(comparisons: Sequence[Comparison], records: Iterable[Record]) -> list[Section]:
    """Builds the report's sections: differing settings, each task, undecided pairs, and notes."""
    frame = method_frame(comparisons)
    tables = [_differences(comparisons)]
    for (task, score), rows in frame.groupby(["task", "score"], sort=False):
        view = rows.drop(columns=["profile", "task", "score"]).dropna(axis=1, how="all")
        tables.append(Section(heading=f"{task}: {score}", frame=view, formats=COLUMN_FORMATS))
    notes = []
    for record in records:
        reason = why_left_out(record) if record.finished else ""
        if reason:
            notes.append(f"{record.cell}, seed {record.seeds.seed}, is left out: {reason}.")
    notes += LEGEND
    is_quick = frame.profile[0] == QUICK_PROFILE.id
    if frame.study.notna().any():
        caveat = (
            "of other backbones on other rows" if is_quick else "rows, weights and caps may differ"
        )
        notes.append(f"study: published scores; {caveat}.")
    if is_quick:
        notes.append(OF_QUICK)
    return [
        *(table for table in tables if table.cells),
        _pairs(comparisons),
        Section(heading="What to know", sentences=notes),
    ]


def method_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A table with a row for each method, by task and backbone, best first."""
    study = read_list(PUBLISHED) if PUBLISHED.is_file() else []
    published: dict[tuple[str, str], float | None] = {}
    for record in study:
        printed = record.scores.get(INSTEAD.get(record.main_score, ""))
        published[record.cell, record.main_score] = record.scores.get(record.main_score, printed)
    rows: list[dict[str, object]] = []
    for comparison in comparisons:
        rows += [_row(comparison, method, published) for method in comparison.entries]
    return pd.DataFrame(rows)


def _row(
    comparison: Comparison,
    method: str,
    study_scores: Mapping[tuple[str, str], float | None],
) -> dict[str, object]:
    """A method's row; methods that cannot be told apart from the best are `best`, too."""
    entry = comparison.entries[method]
    low, high = entry.interval or (None, None)
    pairs = comparison.pairs
    best = next(iter(comparison.entries))
    row: dict[str, object] = {
        "profile": entry.first.profile,
        "task": comparison.task,
        "score": entry.first.main_score,
        "backbone": comparison.backbone,
        "method": method,
        "points": entry.score,
        MEAN_SD: entry.mean_and_deviation,
        "from": low,
        "to": high,
        "interval by": entry.noise,
        "seeds": len(entry.scores),
        "study": study_scores.get((entry.first.cell, entry.first.main_score)),
    }
    row |= entry.costs
    row["best"] = not pairs[(pairs.better == best) & (pairs.other == method)].apart.any()
    row["front"] = method in comparison.front(*comparison.costs)
    return row


def _differences(comparisons: Sequence[Comparison]) -> Section:
    """A section on how the methods of one backbone and task differ, starting with the budget."""
    rows = []
    for fact, comparison in product(FACTS, comparisons):
        methods = defaultdict[str, list[str]](list)
        for method, entry in comparison.entries.items():
            methods[entry.facts[fact]].append(method)
        if len(methods) > 1:
            values = []
            for value, names in methods.items():
                values.append(f"{value} ({', '.join(names)})")
            rows.append(
                {
                    "task": comparison.task,
                    "backbone": comparison.backbone,
                    "in": fact,
                    "methods": ", ".join(values),
                }
            )
    heading = "Not like for like"
    sentences = []
    if any(row["in"] == "updates" for row in rows):
        heading += " in budget"
        sentences.append("updates: number x rows per update.")
    return Section(heading=heading, frame=pd.DataFrame(rows), sentences=sentences)


def _pairs(comparisons: Sequence[Comparison]) -> Section:
    """A section on the pairs that were not told apart, and why some of them were not tested.

    Pairs that need the fewest seeds come first.
    """
    frames = [c.pairs.assign(task=c.task, backbone=c.backbone) for c in comparisons]
    frame = pd.concat(frames)
    if frame.empty:
        return Section(heading="Each backbone has one method: no methods to compare")
    frame["methods"] = frame.better + ", " + frame.other
    columns = [
        "task",
        "backbone",
        "methods",
        "points apart",
        "seeds that tell",
        "not tested, since",
    ]
    alike = frame[~frame.apart.astype(bool)].sort_values("seeds that tell", kind="stable")
    alike = alike[columns].dropna(axis=1, how="all")
    heading = f"Told apart: {count_text(int(frame.apart.sum()), len(frame), 'pair')} of methods"
    if len(alike):
        heading += "; the other pairs, those that need the fewest seeds first:"
    return Section(heading=heading, frame=alike.head(MOST_PAIRS), formats=COLUMN_FORMATS)
