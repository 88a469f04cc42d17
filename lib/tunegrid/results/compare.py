"""Compares methods by task and cost: which is best, what it costs, and what cannot be told apart, and why.

Methods are compared on one backbone and task at a time, by the scores of their seeds on the same test rows. Seeds are those of
the runs and, if recipe and scores are the same on as many test rows, the 20 to 30 of the calibrated noise. Needs no torch.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pandas as pd
from scipy import special

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY as GRID
from tunegrid.grid.cells import STUDY_IDS, study_place
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import Record
from tunegrid.record.checks import failures, impossible_figures
from tunegrid.record.record import Limits, recipe_record
from tunegrid.results.alike import FACTS, OF_A_SEED, check_alike
from tunegrid.results.files import read_list
from tunegrid.results.noise import SEEDS, Noise, deviation
from tunegrid.results.report import Section, some
from tunegrid.results.statistics import ALPHA, POWER, holm
from tunegrid.terminal import without_places

MIB = 2**20
BYTES_A_PARAMETER = 4  # trained parameters are fp32
TRAINED, TENSORS, PEAK, SECONDS = COSTS = ("trained MiB", "tensor MiB", "peak GiB", "seconds")  # of which less is better
STUDY = ROOT / "reports" / "study.json"
INSTEAD = {"rougeLsum": "rougeL"}  # which score the study printed if it did not print the main one
DOUBT = 0.001  # scores that one honest run in 1,000 has are not taken for those of the calibrated seeds
MOST_PAIRS = 40  # that a table lists
WHOLE = Limits(train_rows=None, validation_rows=None, test_rows=None, own_test=False)  # of calibrated seeds
Pair = frozenset[str]  # two methods
Error = tuple[float, float]  # a variance in squared points, and the degrees of freedom that it rests on


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method on one backbone and task: a record per seed, and scores of calibrated seeds that these lack."""

    records: Sequence[Record]
    more_scores: Sequence[float] = ()

    @property
    def first(self) -> Record:
        """The record that stands for all in what they have in common."""
        return self.records[0]

    @cached_property
    def scores(self) -> list[float]:
        """Main scores that are numbers, by seed."""
        own = [score for record in self.records if (score := record.scores.get(record.main_score)) is not None]
        return [*own, *self.more_scores]

    @property
    def score(self) -> float:
        """The main score, its mean over seeds; not a number if no seed has one."""
        return fmean(self.scores) if self.scores else math.nan

    @cached_property
    def objections(self) -> list[str]:
        """What audits find in any seed: its figures may not be those of the method."""
        messages = [without_places(text) for r in self.records for text in (*failures(r.audits), *impossible_figures(r))]
        absent = any(record.scores.get(record.main_score) is None for record in self.records)
        return list(dict.fromkeys([*messages, *([f"a seed has no {self.first.main_score}"] if absent else [])]))

    @cached_property
    def costs(self) -> dict[str, float | None]:
        """By the names of `COSTS`; None for what was not measured of the method alone, as on a machine that others used."""
        parameters, ledger = self.first.parameters, self.first.memory.ledger if self.first.memory else None
        trained, tensors = (ledger.checkpoint_bytes, ledger.tensor_bytes) if ledger else (None, None)
        if trained is None and parameters:
            trained = BYTES_A_PARAMETER * parameters.trainable_params
        peaks = [peak for record in self.records if (peak := record.own_peak_gib) is not None]
        seconds = [] if self.contended else [record.training.seconds for record in self.records if record.training]
        return {
            TRAINED: None if trained is None else trained / MIB,
            TENSORS: None if tensors is None else tensors / MIB,
            PEAK: max(peaks) if len(peaks) == len(self.records) else None,
            SECONDS: fmean(seconds) if seconds else None,
        }

    @property
    def contended(self) -> bool:
        """Whether others used the machine while any seed trained."""
        return any(record.device and record.device.contended for record in self.records)

    @property
    def test_rows(self) -> set[str]:
        """What tells the rows that it was scored on: their hash, or else that of all its data."""
        return {r.examples.rows_hash if r.examples else r.data.fingerprint if r.data else "" for r in self.records}


def entry_of(records: Sequence[Record], calibrated: Noise) -> Entry:
    """The entry of a cell's records; seeds calibrated by its recipe on as many test rows count if its scores may be theirs."""
    first, name = records[0], records[0].main_score
    known = [score for group in calibrated.scores.get(SEEDS, {}).get((first.cell, name), ()) for score in group]
    own, scores = calibrated.of(SEEDS, first, name), [score for r in records if (score := r.scores.get(name)) is not None]
    if not known or not scores or own is None or first.cell not in STUDY_IDS:
        return Entry(records=records)
    declared = recipe_record(GRID.cell(first.cell, QUICK_PROFILE)), WHOLE, None
    errors = [(own.sd**2 / len(group), own.df) for group in (scores, known)]
    alike = all((record.recipe, record.limits, record.seeds.perturbation) == declared for record in records)
    if not alike or p_of(fmean(scores) - fmean(known), errors) < DOUBT:
        return Entry(records=records)
    seeds = {record.seeds.seed for record in records}
    return Entry(records=records, more_scores=[score for seed, score in enumerate(known) if seed not in seeds])


def entries_of(runs: Mapping[Path, Sequence[Record]], calibrated: Noise) -> list[Entry]:
    """The entries of all cells that finished; raises InputError if the runs cannot be compared."""
    names, known = " and ".join(map(str, runs)), dict[tuple[str, str, int | None], Path]()
    cells: dict[str, list[Record]] = defaultdict(list)
    for path, record in ((path, record) for path, records in runs.items() for record in records if record.finished):
        key = record.profile, record.cell, record.seeds.seed
        if (other := known.setdefault(key, path)) != path:
            which = f"{other} and {path} both hold {record.cell} of seed {record.seeds.seed}"
            raise InputError(f"{which}; a comparison takes each seed once")
        cells[record.cell].append(record)
    finished = [record for own in cells.values() for record in own]
    profiles, methods = sorted({record.profile for record in finished}), {record.method for record in finished}
    if len(profiles) > 1:
        raise InputError(f"{names}: cells of {' and '.join(profiles)}; compare one profile at a time")
    if not any(record.scores for record in finished):
        raise InputError(f"{names}: no cell finished with a score, so there is nothing to compare")
    if len(methods) == 1:
        raise InputError(f"{names}: one method only, {methods.pop()}; a comparison takes two or more")
    check_alike(finished)
    return [entry_of(own, calibrated) for own in cells.values()]


# Chance


def p_of(difference: float, errors: Sequence[Error]) -> float:
    """The two-sided p-value of no true difference between two means; without any error there is one or there is not."""
    total = sum(variance for variance, _ in errors)
    if not total:
        return float(difference == 0)
    return float(2 * special.stdtr(freedom(errors), -abs(difference) / total**0.5))


def freedom(errors: Sequence[Error]) -> float:
    """The degrees of freedom of a sum of variances, not all zero, by Satterthwaite (1946) and Welch (1947)."""
    return sum(variance for variance, _ in errors) ** 2 / sum(variance**2 / df for variance, df in errors)


def noise_of(entries: Sequence[Entry], calibrated: Noise) -> Noise:
    """The calibrated noise if it is of runs like these, and else what these seeds tell; pooled over cells of a kind."""
    profile = entries[0].first.profile
    rows = {entry.first.task: entry.first.data.rows["test"] for entry in entries if entry.first.data}
    measured = {}
    for entry in entries:
        own = deviation([entry.scores]) if entry.first.data and not entry.objections else None
        if own:
            measured[entry.first.cell, entry.first.main_score] = own
    for (cell, score), own in calibrated.measured.get(SEEDS, {}).items():
        task = cell.split("_")[1]
        if profile == calibrated.profile and calibrated.rows[task] == rows.get(task):
            measured[cell, score] = own
    return Noise(profile=profile, rows=rows, measured={SEEDS: measured})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The methods of one backbone and task, the best score first, those that audits object to last; and noise between seeds."""

    task: str
    backbone: str
    entries: Mapping[str, Entry]
    noise: Noise

    @cached_property
    def sound(self) -> dict[str, Entry]:
        """The entries that no audit objects to."""
        return {method: entry for method, entry in self.entries.items() if not entry.objections}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two of them, the better one first."""
        return list(combinations(self.sound, 2))

    def errors(self, *methods: str) -> list[Error]:
        """Of their mean scores, by the noise between seeds; none for one of unknown noise."""
        entries = [self.entries[method] for method in methods]
        known = [(self.noise.of(SEEDS, entry.first, entry.first.main_score), len(entry.scores)) for entry in entries]
        return [(own.sd**2 / seeds, own.df) for own, seeds in known if own and seeds]

    def interval(self, method: str) -> tuple[float, float] | None:
        """The 95 % interval of a score over seeds; None if their noise is unknown."""
        score = self.entries[method].score
        for variance, df in self.errors(method):
            reach = float(special.stdtrit(df, 1 - ALPHA / 2)) * variance**0.5
            return max(0.0, score - reach), min(100.0, score + reach)
        return None

    def gap(self, one: str, other: str) -> float:
        """By how many points the first one is better."""
        return self.entries[one].score - self.entries[other].score

    def untested(self, one: str, other: str) -> str:
        """Why two methods cannot be tested, and what helps; empty if they can be."""
        if len(self.entries[one].test_rows | self.entries[other].test_rows) > 1:
            return "they scored other test rows"
        unknown = [method for method in (one, other) if not self.errors(method)]
        return f"by how much a seed moves {' or '.join(unknown)} is unknown (`--seeds=0-4` tells)" if unknown else ""

    @cached_property
    def p_values(self) -> dict[Pair, float]:
        """The two-sided p-value of equal methods, by pair that can be tested."""
        tested = [pair for pair in self.pairs if not self.untested(*pair)]
        return {frozenset(pair): p_of(self.gap(*pair), self.errors(*pair)) for pair in tested}

    @cached_property
    def apart(self) -> set[Pair]:
        """The pairs that are told apart. The chance that any of them is so by mistake is 5 % at most (Holm)."""
        return {pair for pair, p in holm(self.p_values).items() if p < ALPHA}

    def seeds_needed(self, one: str, other: str) -> float:
        """So many seeds a method would tell two apart four times in five, of noise known as well as now; NaN if none would."""
        gap = self.gap(one, other)
        if not gap or self.untested(one, other):
            return math.nan
        of_one = [(v * len(self.entries[method].scores), df) for method in (one, other) for v, df in self.errors(method)]
        df, noise = freedom(of_one), sum(variance for variance, _ in of_one)
        quantiles = special.stdtrit(df, 1 - ALPHA / 2 / len(self.p_values)) + special.stdtrit(df, POWER)
        return math.ceil(noise * float(quantiles / gap) ** 2)

    @cached_property
    def costs(self) -> list[str]:
        """The costs that were measured of all sound entries; a peak holds the tensors, which count if it is not known."""
        known = [name for name in COSTS if all(entry.costs[name] is not None for entry in self.sound.values())]
        return [name for name in known if name != TENSORS or PEAK not in known]

    def front(self, *costs: str) -> list[str]:
        """The Pareto front: methods that no other one is as good as for as little of these costs, which all have."""
        figures = {m: (-entry.score, *(float(entry.costs[name] or 0) for name in costs)) for m, entry in self.sound.items()}
        return [m for m, own in figures.items() if not any(dominates(other, own) for other in figures.values())]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is as little in every figure and less in some."""
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def compared(runs: Mapping[Path, Sequence[Record]], calibrated: Noise) -> list[Comparison]:
    """The methods of each task and backbone next to each other; raises InputError if runs cannot be compared."""
    return beside_each_other(entries_of(runs, calibrated), calibrated)


def beside_each_other(entries: Sequence[Entry], calibrated: Noise) -> list[Comparison]:
    """Entries of one profile by task and backbone; at least one."""
    noise, groups = noise_of(entries, calibrated), defaultdict[tuple[str, str], list[Entry]](list)
    for entry in sorted(entries, key=lambda entry: study_place(entry.first.cell)):
        groups[entry.first.task, entry.first.backbone].append(entry)
    comparisons = []
    for (task, backbone), own in groups.items():
        own.sort(key=lambda entry: (bool(entry.objections), -entry.score))
        by_method = {entry.first.method: entry for entry in own}
        comparisons.append(Comparison(task=task, backbone=backbone, entries=by_method, noise=noise))
    return comparisons


# In words

FORMATS = {"points": ".1f", "from": ".1f", "to": ".1f", "seeds": "", "study": ".1f", TRAINED: ".2f", TENSORS: ".1f"}
FORMATS |= {PEAK: ".2f", SECONDS: ".1f", "best": "", "front": "", "of": "", "points apart": ".2f", "seeds that tell": ".0f"}
LEGEND = (
    "points: the main score, a mean over all seeds that are known; from, to: its 95 % interval over seeds, on these test rows.",
    "best: or cannot be told from it (Holm, 5 % a backbone); seeds that tell: so many a method would, four times in five.",
    "trained: what training changes and a checkpoint keeps; tensor: weights, gradients and optimizer state.",
    "front: yes if no other method of the backbone is as good for as little of all costs that were measured of each of them.",
)
OF_QUICK = (
    "The quick profile trains micro backbones, which say nothing of full-size models; its learning rates were found with test "
    "scores in view (reports/tuning-quick-cpu.md)."
)


def published_scores(records: Iterable[Record] = ()) -> dict[str, float]:
    """Main scores by cell, of these published records or of the study."""
    records = list(records) or (read_list(STUDY) if STUDY.is_file() else [])
    scores = {r.cell: r.scores.get(r.main_score, r.scores.get(INSTEAD.get(r.main_score, ""))) for r in records}
    return {cell: score for cell, score in scores.items() if score is not None}


def sections(comparisons: Sequence[Comparison], published: Mapping[str, float]) -> list[Section]:
    """What is not like for like, a table for each task, how often methods are best, and what cannot be told apart."""
    frame = pd.DataFrame([_row(one, method, published) for one in comparisons for method in one.entries])
    parts = [_unlike(comparisons)]
    for (task, score), own in frame.groupby(["task", "score"], sort=False):
        shown = own.drop(columns=["task", "score"]).dropna(axis=1, how="all")
        parts.append(Section(heading=f"{task}: {score}", frame=shown, formats=FORMATS))
    if frame.backbone.nunique() > 1:
        counts = frame.assign(of=1).groupby(["task", "method"], sort=False)
        heading = "How often a method is best, and on the front, of so many backbones"
        parts.append(Section(heading=heading, frame=counts[["best", "front", "of"]].sum().reset_index(), formats=FORMATS))
    profile, quick = comparisons[0].noise.profile, [OF_QUICK] if comparisons[0].noise.profile == QUICK_PROFILE.id else []
    unlike = "rows, weights and caps may differ" if profile == FULL_PROFILE.id else "of other backbones on other rows"
    study = [f"study: published; {unlike}."] if frame.study.notna().any() else []
    limits = Section(heading="What to know", sentences=[*_limits(comparisons), *LEGEND, *study, *quick])
    return [part for part in (*parts, _pairs(comparisons), limits) if part.cells or part.sentences]


def _row(one: Comparison, method: str, published: Mapping[str, float]) -> dict[str, object]:
    """A method's line; `best`: or not told from it."""
    entry, (low, high) = one.entries[method], one.interval(method) or (None, None)
    return {
        **{"task": one.task, "score": entry.first.main_score, "backbone": one.backbone, "method": method},
        **{"points": entry.score, "from": low, "to": high, "seeds": len(entry.scores)},
        **{"study": published.get(entry.first.cell), **entry.costs},
        "best": method in one.sound and frozenset((method, next(iter(one.sound)))) not in one.apart,
        "front": method in one.front(*one.costs),
    }


def _unlike(comparisons: Sequence[Comparison]) -> Section:
    """What the methods of a backbone and task do not have in common, the budget first."""
    rows = []
    for one, what in ((one, what) for what in FACTS if what not in OF_A_SEED for one in comparisons):
        values = defaultdict[str, list[str]](list)
        for method, entry in one.entries.items():
            values[" and ".join(sorted({FACTS[what](record) for record in entry.records}))].append(method)
        if len(values) > 1:
            shown = ", ".join(f"{value} ({', '.join(methods)})" for value, methods in values.items())
            rows.append({"task": one.task, "backbone": one.backbone, "in": what, "methods": shown})
    budget = any(row["in"] == "updates" for row in rows)
    said = ["updates: times rows of each."] if budget else []
    return Section(heading=f"Not like for like{' in budget' * budget}", frame=pd.DataFrame(rows), sentences=said)


def _pairs(comparisons: Sequence[Comparison]) -> Section:
    """The pairs that cannot be told apart, those that need the fewest seeds first."""
    pairs = [(one, pair) for one in comparisons for pair in one.pairs]
    columns = ["task", "backbone", "methods", "points apart", "seeds that tell"]
    rows = [
        (one.task, one.backbone, ", ".join(pair), one.gap(*pair), one.seeds_needed(*pair))
        for one, pair in pairs
        if frozenset(pair) not in one.apart
    ]
    frame = pd.DataFrame(rows, columns=columns).sort_values("seeds that tell", kind="stable")
    heading = f"{len(pairs) - len(rows)} of {len(pairs)} pairs of methods are told apart"
    if untested := len(pairs) - sum(len(one.p_values) for one in comparisons):
        heading += f", {untested} could not be tested"
    heading += "; the others:" if rows else ""
    said = [f"{len(rows) - MOST_PAIRS} more need more seeds."] if len(rows) > MOST_PAIRS else []
    said += ["No pair is left."] if pairs and not rows else []  # a section needs something below its heading
    return Section(heading=heading, frame=frame.head(MOST_PAIRS), formats=FORMATS, sentences=said)


def _limits(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for everything that limits what the tables say."""
    said, cells = defaultdict[str, list[str]](list), [entry for one in comparisons for entry in one.entries.values()]
    for entry in cells:
        for sentence in entry.objections:
            said[f"neither best nor on the front, since {sentence}"].append(entry.first.cell)
        if entry.contended:
            said["no seconds, since others used the machine"].append(entry.first.cell)
        if entry.costs[PEAK] is None:
            shared = "no peak, since processes may have run other cells before (`--engine=process` starts one each)"
            said[shared if entry.first.peak_gib is not None else "no peak was measured"].append(entry.first.cell)
    untested, pairs = defaultdict[str, list[str]](list), [(one, pair) for one in comparisons for pair in one.pairs]
    for one, pair in pairs:
        if reason := one.untested(*pair):
            untested[f"not tested, since {reason}"].append(f"{one.task} {one.backbone} {' and '.join(pair)}")
    of_cells = [f"{why}: {'all' if len(names) == len(cells) else some(names)}." for why, names in said.items()]
    of_pairs = [f"{why}: {'all pairs' if 1 < len(names) == len(pairs) else some(names)}." for why, names in untested.items()]
    return of_cells + of_pairs
