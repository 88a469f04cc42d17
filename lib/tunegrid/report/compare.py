"""Compares methods by task and cost: which is best, what it costs, and what cannot be told apart, and why.

Methods are compared on one backbone and task at a time, by the scores of the run's seeds on the same
test rows. Their noise is the calibrated one if it is known, else that of these seeds. Needs no torch.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from statistics import fmean, stdev

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

# Costs, of which less is better
TRAINED = "trained MiB"
TENSORS = "tensor MiB"
PEAK = "peak GiB"
SECONDS = "seconds"
FIGURES = {
    "score": "score",
    TRAINED: "trained_mib",
    TENSORS: "tensor_mib",
    PEAK: "own_peak_gib",
    SECONDS: "own_seconds",
}
MEAN_SD = "mean ± sd"
PUBLISHED = ROOT / "reports" / "study.json"  # the study's scores
INSTEAD = {"rougeLsum": "rougeL"}  # which score the study printed if it did not print the main one
# By which noise an interval is made
CALIBRATED = "calibrated noise"
OWN = "these seeds"
UNKNOWN = "unknown"
TOO_RARE = 0.001  # seeds of which so few runs scatter as much have another noise
MOST_PAIRS = 40  # that a table lists: the others need more seeds than anybody has
Error = tuple[float, float]  # a variance in squared points, and the degrees of freedom that it rests on


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method on one backbone and task."""

    first: Record  # of its seeds, which stands for all in what they have in common
    scores: Sequence[float]  # main scores of its seeds; at least one
    costs: Mapping[str, float]  # by name; NaN for what was not measured of each seed alone
    facts: Mapping[str, str]  # by `FACTS`
    rows: set[str]  # what tells its test rows
    error: Error | None = None  # of the mean score, by the noise between seeds; None if that is unknown
    noise: str = UNKNOWN  # by which the error is known

    @property
    def score(self) -> float:
        """The mean main score."""
        return fmean(self.scores)

    @property
    def mean_and_deviation(self) -> str | None:
        """The mean and the standard deviation of the seeds' scores, as papers print them; None for one seed."""
        if len(self.scores) < 2:
            return None
        return f"{self.score:.1f} ± {stdev(self.scores):.1f}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the score over seeds; None if their noise is unknown."""
        if self.error is None:
            return None
        reach = float(special.stdtrit(self.error[1], 1 - ALPHA / 2)) * self.error[0] ** 0.5
        return max(0.0, self.score - reach), min(100.0, self.score + reach)


def make_entry(records: Sequence[Record]) -> Entry:
    """The entry of a cell's records, which are sound."""
    frame = figure_frame(records, FIGURES)
    costs = {
        TRAINED: frame[TRAINED].iloc[0],
        TENSORS: frame[TENSORS].iloc[0],
        PEAK: frame[PEAK].max(skipna=False),
        SECONDS: frame[SECONDS].mean(skipna=False),
    }
    return Entry(
        first=records[0],
        scores=list(frame.score),
        costs=costs,
        facts={what: " and ".join(sorted({fact(record) for record in records})) for what, fact in FACTS.items()},
        rows={r.examples.rows_hash if r.examples else r.data.fingerprint if r.data else "" for r in records},
    )


def _check_adapted(record: Record) -> str:
    """Whether every layer that carries an adapter is one that pretraining never saw."""
    targets = (record.recipe.adapter or {}).get("target_modules")  # a method's own settings: of any type
    adapted = set(record.model.adapted_modules) if record.model else set()
    return "the new head alone" if isinstance(targets, list) and set() < set(map(str, targets)) <= adapted else "the backbone"


FACTS: Mapping[str, Callable[[Record], str]] = {  # that methods have in common if they are like for like; the budget first
    "updates": lambda record: f"{record.training.updates if record.training else 'no'}x{record.recipe.rows_per_update}",
    "precision": lambda record: record.training.precision if record.training else "unknown",
    "data": lambda record: record.data.fingerprint if record.data else "unknown",
    "adapted": _check_adapted,
    "search": lambda record: str(record.recipe.generation),
    "device": lambda record: f"{record.device.name}, {record.device.threads or 'no'} threads" if record.device else "unknown",
    "ranks": lambda record: record.processes,
    "libraries": lambda record: ", ".join(f"{name} {record.versions.get(name)}" for name in SPEED_PACKAGES),
}


def p_value(difference: float, errors: Sequence[Error]) -> float:
    """The two-sided p-value of no true difference between two means; without any error there is one or there is not."""
    total = sum(variance for variance, _ in errors)
    if not total:
        return float(difference == 0)
    return float(2 * special.stdtr(freedom(errors), -abs(difference) / total**0.5))


def freedom(errors: Sequence[Error]) -> float:
    """The degrees of freedom of a sum of variances, not all zero, by Satterthwaite (1946) and Welch (1947)."""
    return sum(variance for variance, _ in errors) ** 2 / sum(variance**2 / df for variance, df in errors)


def add_errors(entries: Sequence[Entry], calibrated: Noise) -> list[Entry]:
    """The entries with the errors of their means, by the calibrated noise or the run's own."""
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
    """An entry with the error of its mean, if either noise is known of it."""
    is_calibrated = calibrated_holds(entry, calibrated, own)
    noise = calibrated if is_calibrated else own
    first = entry.first
    spread = noise.find(SEEDS, first, first.main_score)
    if not spread:
        return entry
    points = spread.sd / noise.scale(first.cell, first.main_score).per_point(entry.score)
    error = points**2 / len(entry.scores), spread.df
    return replace(entry, error=error, noise=CALIBRATED if is_calibrated else OWN)


def calibrated_holds(entry: Entry, calibrated: Noise, own: Noise) -> bool:
    """Checks that the calibrated noise is known of an entry, and that its seeds do not contradict it.

    The calibration's many seeds tell a deviation better than the few of a run, and the gate judges
    by it, too. But it is that of the built-in methods and recipes: several seeds of a run count
    instead if their method was not calibrated, or if they scatter more than one run in 1,000 does
    by this noise (F-test).
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
    """The methods of one backbone and task, the best score first."""

    task: str
    backbone: str
    entries: Mapping[str, Entry]

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every two methods, the better one first. The chance that any two are told apart by mistake is 5 % at most (Holm)."""
        rows = []
        for one, other in combinations(self.entries.values(), 2):
            gap, methods = one.score - other.score, [entry.first.method for entry in (one, other) if not entry.error]
            reason = f"the noise between seeds of {' or '.join(methods)} is unknown" if methods else None
            reason = "their test rows differ" if len(one.rows | other.rows) > 1 else reason
            p = p_value(gap, [one.error, other.error]) if one.error and other.error and not reason else math.nan
            rows.append((one.first.method, other.first.method, gap, reason, p))
        frame = pd.DataFrame(rows, columns=["better", "other", "points apart", "not tested, since", "p"])
        p_values = holm(frame.p.dropna().to_dict())
        frame["apart"] = [p_values.get(index, 1.0) < ALPHA for index in frame.index]
        seed_counts = {index: self.seeds_needed(frame.better[index], frame.other[index], len(p_values)) for index in p_values}
        frame["seeds that tell"] = [seed_counts.get(index, math.nan) for index in frame.index]
        return frame

    def seeds_needed(self, better: str, other: str, tests: int) -> float:
        """So many seeds of each would tell two methods apart four times in five, of noise known as well as now; NaN if none."""
        entries = [self.entries[method] for method in (better, other)]
        errors = [(entry.error[0] * len(entry.scores), entry.error[1]) for entry in entries if entry.error]
        df, noise, gap = freedom(errors), sum(variance for variance, _ in errors), entries[0].score - entries[1].score
        quantiles = special.stdtrit(df, 1 - ALPHA / 2 / tests) + special.stdtrit(df, POWER)
        return math.ceil(noise * float(quantiles / gap) ** 2) if gap else math.nan

    @cached_property
    def costs(self) -> list[str]:
        """The costs that were measured of all; a peak holds the tensors, which count if it is not known."""
        costs = pd.DataFrame([entry.costs for entry in self.entries.values()]).dropna(axis=1)
        return [name for name in costs if name != TENSORS or PEAK not in costs]

    def front(self, *costs: str) -> list[str]:
        """The Pareto front: methods that no other one is as good as for as little of these costs, which all have."""
        figures = {m: (-entry.score, *(entry.costs[name] for name in costs)) for m, entry in self.entries.items()}
        return [m for m, one in figures.items() if not any(dominates(other, one) for other in figures.values())]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is as little in every figure and less in some."""
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def why_left_out(record: Record) -> str:
    """Why a record's figures may not be those of its method; empty if nothing says so."""
    gaps = [f"it has no {record.main_score}"] if record.scores.get(record.main_score) is None else []
    confirms = [f"it only confirms or refutes the miss of seed {seed}"] if (seed := record.seeds.confirms) is not None else []
    return strip_places(next(iter([*confirms, *gaps, *failed_audits(record.audits), *impossible_figures(record)]), ""))


def compare_methods(records: Iterable[Record], calibrated: Noise) -> list[Comparison]:
    """The methods of each task and backbone that nothing objects to; raises InputError if records cannot be compared."""
    cells: dict[str, list[Record]] = defaultdict(list)
    for record in (one for one in records if one.finished and not why_left_out(one)):
        cells[record.cell].append(record)
    if len(profiles := sorted({group[0].profile for group in cells.values()})) > 1:
        raise InputError(f"cells of {' and '.join(profiles)}; compare one profile at a time")
    if not profiles:
        raise InputError("no cell ran to its end and passed its audits, so there is nothing to compare")
    check_alike(record for group in cells.values() for record in group)
    groups: dict[tuple[str, str], dict[str, Entry]] = defaultdict(dict)
    entries = add_errors([make_entry(group) for group in cells.values()], calibrated)
    for entry in sorted(entries, key=lambda entry: (study_place(entry.first.cell)[:2], -entry.score)):
        groups[entry.first.task, entry.first.backbone][entry.first.method] = entry
    return [Comparison(task=task, backbone=backbone, entries=group) for (task, backbone), group in groups.items()]


# In words

FORMATS = {
    "points": ".1f",
    MEAN_SD: "",
    "from": ".1f",
    "to": ".1f",
    "seeds": "",
    "study": ".1f",
    TRAINED: ".2f",
    TENSORS: ".1f",
}
FORMATS |= {PEAK: ".2f", SECONDS: ".1f", "points apart": ".2f", "seeds that tell": ".0f"}
LEGEND = (
    "points: the run's mean main score; sd: the standard deviation of its seeds; from, to: the 95 % interval over seeds.",
    "interval by: calibrated noise, of seeds that were calibrated by the same recipe; or the noise of these seeds.",
    "best: the best, or not told apart from it (Holm, 5 % a backbone); seeds that tell: seeds per method for a power of 80 %.",
    "trained: what training changes and a checkpoint keeps; tensor: weights, gradients and optimizer state.",
    "peak, seconds: only of processes that ran no other cell before (`--engine=process`), on a machine without other work.",
    "front: yes if no other method of the backbone is as good at no greater cost.",
)
OF_QUICK = (
    "The quick profile trains micro backbones, which say nothing of full-size models; its learning rates were found with test "
    "scores in view (reports/tuning-quick-cpu.md)."
)


def sections(comparisons: Sequence[Comparison], records: Iterable[Record]) -> list[Section]:
    """What is not like for like, a table for each task, what cannot be told apart, and which of the records are left out."""
    frame = method_frame(comparisons)
    parts = [_differences(comparisons)]
    for (task, score), rows in frame.groupby(["task", "score"], sort=False):
        view = rows.drop(columns=["profile", "task", "score"]).dropna(axis=1, how="all")
        parts.append(Section(heading=f"{task}: {score}", frame=view, formats=FORMATS))
    quick = [OF_QUICK] if frame.profile[0] == QUICK_PROFILE.id else []
    caveat = "of other backbones on other rows" if quick else "rows, weights and caps may differ"
    of_study = [f"study: published scores; {caveat}."] if frame.study.notna().any() else []
    reasons = [(record, why_left_out(record)) for record in records if record.finished]
    omissions = [f"{record.cell}, seed {record.seeds.seed}, is left out: {why}." for record, why in reasons if why]
    notes = [*omissions, *LEGEND, *of_study, *quick]
    tables = [part for part in parts if part.cells]
    return [*tables, _pairs(comparisons), Section(heading="What to know", sentences=notes)]


def method_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A line for each method, by task and backbone, the best first."""
    study = read_list(PUBLISHED) if PUBLISHED.is_file() else []
    published: dict[str, float | None] = {}
    for record in study:
        printed = record.scores.get(INSTEAD.get(record.main_score, ""))
        published[record.cell] = record.scores.get(record.main_score, printed)
    rows: list[dict[str, object]] = []
    for comparison in comparisons:
        rows += [_row(comparison, method, published) for method in comparison.entries]
    return pd.DataFrame(rows)


def _row(comparison: Comparison, method: str, study_scores: Mapping[str, float | None]) -> dict[str, object]:
    """A method's line; `best`: or not told from it."""
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
        "study": study_scores.get(entry.first.cell),
    }
    row |= entry.costs
    row["best"] = not pairs[(pairs.better == best) & (pairs.other == method)].apart.any()
    row["front"] = method in comparison.front(*comparison.costs)
    return row


def _differences(comparisons: Sequence[Comparison]) -> Section:
    """What the methods of a backbone and task do not have in common, the budget first."""
    rows = []
    for fact, one in product(FACTS, comparisons):
        methods = defaultdict[str, list[str]](list)
        for method, entry in one.entries.items():
            methods[entry.facts[fact]].append(method)
        if len(methods) > 1:
            text = ", ".join(f"{value} ({', '.join(names)})" for value, names in methods.items())
            rows.append({"task": one.task, "backbone": one.backbone, "in": fact, "methods": text})
    budget = any(row["in"] == "updates" for row in rows)
    sentences = ["updates: number x rows per update."] if budget else []
    return Section(heading=f"Not like for like{' in budget' * budget}", frame=pd.DataFrame(rows), sentences=sentences)


def _pairs(comparisons: Sequence[Comparison]) -> Section:
    """The pairs that cannot be told apart and why, those that need the fewest seeds first."""
    frame = pd.concat([one.pairs.assign(task=one.task, backbone=one.backbone) for one in comparisons])
    if frame.empty:
        return Section(heading="One method of each backbone: no pair to tell apart")
    frame["methods"] = frame.better + ", " + frame.other
    columns = ["task", "backbone", "methods", "points apart", "seeds that tell", "not tested, since"]
    others = frame[~frame.apart.astype(bool)].sort_values("seeds that tell", kind="stable")[columns].dropna(axis=1, how="all")
    heading = f"Told apart: {count_text(int(frame.apart.sum()), len(frame), 'pair')} of methods"
    heading += "; the other pairs, those that need the fewest seeds first:" if len(others) else ""
    return Section(heading=heading, frame=others.head(MOST_PAIRS), formats=FORMATS)
