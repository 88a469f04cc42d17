"""Compares methods by task and cost: fronts, and groups that cannot be told apart, as tables in words.

Methods are compared on one backbone and task at a time. Two chances separate their main scores: other seeds
(`tunegrid.results.noise`, calibrated, or of these very seeds) and other test rows, on which methods pair. Where both are known,
intervals and groups hold for both. Rows alone tell no methods apart: another seed moves a score by more. Needs no torch.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from string import ascii_letters
from typing import TypeVar

import numpy as np
from scipy import special

from tunegrid.errors import InputError
from tunegrid.grid.cells import study_place
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.record import Record
from tunegrid.record.checks import failures, impossible_figures
from tunegrid.results.alike import FACTS, check_alike
from tunegrid.results.examples import read
from tunegrid.results.noise import SEEDS, Noise, NoiseKey, deviation, resolution
from tunegrid.results.statistics import ALPHA, Array, gains_of, holm
from tunegrid.results.table import Column, latex_float, lines, markdown, markdown_table, number

BYTES_A_PARAMETER = 4  # trained parameters are fp32
TRAINED, TENSORS, PEAK, SECONDS = COSTS = ("trained bytes", "tensor bytes", "peak GiB", "seconds")  # of which less is better
SourcedRecord = tuple[Record, Path]  # a record, and the file of its run
Item = TypeVar("Item")
NamePair = frozenset[str]  # two methods
Error = tuple[float, float]  # a variance in squared points, and the degrees of freedom that it rests on


# A method, and what it costs


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method on one backbone and task.

    Attributes:
        records: one per seed.
        rows: points of each test row, the mean over seeds; None where they were not kept for every seed.
    """

    records: Sequence[Record]
    rows: Array | None = None

    @property
    def first(self) -> Record:
        """The record that stands for all, where they are alike."""
        return self.records[0]

    @property
    def method(self) -> str:
        """Its method."""
        return self.first.method

    @property
    def key(self) -> NoiseKey:
        """Cell and main score, as noise is kept by."""
        return self.first.cell, self.first.main_score

    @cached_property
    def scores(self) -> list[float]:
        """Main scores that are numbers, by seed."""
        return [score for record in self.records if (score := record.scores.get(record.main_score)) is not None]

    @property
    def score(self) -> float:
        """The main score, its mean over seeds; not a number where no seed has one."""
        return fmean(self.scores) if self.scores else float("nan")

    @cached_property
    def objections(self) -> list[str]:
        """What audits find in any seed: its figures may not be those of the method."""
        messages = [sentence for r in self.records for sentence in (*failures(r.audits), *impossible_figures(r))]
        absent = [] if len(self.scores) == len(self.records) else [f"a seed has no {self.first.main_score}"]
        return list(dict.fromkeys([*messages, *absent]))

    @cached_property
    def seconds(self) -> list[float]:
        """Seconds of training, by seed."""
        return [record.training.seconds for record in self.records if record.training]

    @property
    def peak_gib(self) -> float | None:
        """The highest memory peak of any seed, whatever ran in its process before."""
        return max((peak for record in self.records if (peak := record.peak_gib) is not None), default=None)

    @cached_property
    def costs(self) -> dict[str, float | None]:
        """What it costs: bytes that training changes, bytes of its tensors, its own memory peak, mean seconds of training.

        A peak to which other cells of the process may have added is no cost of the method's, and None.
        """
        parameters, ledger = self.first.parameters, self.first.memory.ledger if self.first.memory else None
        trained = ledger.checkpoint_bytes if ledger else None
        if trained is None and parameters:
            trained = BYTES_A_PARAMETER * parameters.trainable_params
        peak = None if any(record.own_peak_gib is None for record in self.records) else self.peak_gib
        tensors = ledger.tensor_bytes if ledger else None
        return {TRAINED: trained, TENSORS: tensors, PEAK: peak, SECONDS: fmean(self.seconds) if self.seconds else None}

    @property
    def test_rows(self) -> set[str]:
        """What tells the rows that it was scored on: their hash, or else that of all its data."""
        return {r.examples.rows_hash if r.examples else r.data.fingerprint if r.data else "" for r in self.records}


def entry_of(saved: Sequence[SourcedRecord]) -> Entry:
    """The entry of a cell's records."""
    kept = [(read(record, path), record.main_score) for record, path in saved]
    points = [examples.points[name] for examples, name in kept if examples and name in examples.points]
    alike = len(points) == len(saved) and len({len(own) for own in points}) == 1 and len(points[0]) > 1
    rows = np.mean(np.asarray(points, float), axis=0) if alike else None
    return Entry(records=[record for record, _ in saved], rows=rows)


def entries_of(runs: Mapping[Path, Sequence[Record]]) -> list[Entry]:
    """The entries of all cells that finished; raises InputError where the runs cannot be compared."""
    saved = _once((record, path) for path, records in runs.items() for record in records)
    finished = [(record, path) for record, path in saved if record.finished]
    _check([record for record, _ in finished], " and ".join(map(str, runs)))
    cells: dict[str, list[SourcedRecord]] = defaultdict(list)
    for record, path in finished:
        cells[record.cell].append((record, path))
    return [entry_of(own) for own in cells.values()]


def _once(saved: Iterable[SourcedRecord]) -> Iterator[SourcedRecord]:
    """The records. Raises InputError where two are of one profile, cell and seed."""
    known: dict[tuple[str, str, int | None], Path] = {}
    for record, path in saved:
        key = record.profile, record.cell, record.seeds.seed
        if key in known:
            both = f"{known[key]} and {path} both hold" if known[key] != path else f"{path} holds twice"
            raise InputError(f"{both} {record.cell} of seed {record.seeds.seed}; a comparison takes each seed once")
        known[key] = path
        yield record, path


def _check(records: Sequence[Record], runs: str) -> None:
    """Raises InputError where records are of two profiles, of one method, or without scores."""
    profiles = sorted({record.profile for record in records})
    if len(profiles) > 1:
        raise InputError(f"{runs}: cells of {' and '.join(profiles)}; compare one profile at a time")
    if not any(record.scores for record in records):
        raise InputError(f"{runs}: no cell finished with a score, so there is nothing to compare")
    methods = {record.method for record in records}
    if len(methods) == 1:
        raise InputError(f"{runs}: one method only, {methods.pop()}; a comparison takes two or more")
    check_alike(records)


# Quality against cost


def sound(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that no audit objects to."""
    return [entry for entry in entries if not entry.objections]


def figures(entry: Entry, costs: Sequence[str]) -> list[float]:
    """Of which less is better: the score, negated, and the costs."""
    return [-entry.score, *(float(entry.costs[name] or 0.0) for name in costs)]


def fronts(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """By each cost that was measured of all sound entries, those that no other one is as good as for as little of it.

    Args:
        entries: of one backbone and task; tables and pages star what this says.
    """
    rated = sound(entries)
    costs = [name for name in COSTS if all(entry.costs[name] is not None for entry in rated)]
    return {cost: front(rated, partial(figures, costs=[cost])) for cost in costs}


def front(items: Iterable[Item], figures: Callable[[Item], Sequence[float]]) -> list[Item]:
    """The Pareto front: the items that no other one beats in a figure without losing in another; less is better."""
    rated = [(item, tuple(figures(item))) for item in items]
    return [item for item, own in rated if not any(dominates(other, own) for _, other in rated)]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is as good in every figure and better in some."""
    return tuple(one) != tuple(other) and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


# Chance


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval of a mean score, and what it rests on."""

    low: float
    high: float
    by: str


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What separates methods by chance.

    Attributes:
        noise: between seeds.
        calibrated: cells and scores whose noise was calibrated, not estimated from these runs.
    """

    noise: Noise
    calibrated: Collection[NoiseKey] = ()

    def interval(self, entry: Entry) -> Interval | None:
        """The interval of a score; None where neither seeds nor rows tell it."""
        seeds, rows = self._seed_error(entry), [] if entry.rows is None else [row_error(entry.rows)]
        if not seeds + rows:
            return None
        error, df = combined(seeds + rows)
        half = float(special.stdtrit(df, 1 - ALPHA / 2)) * error
        by = [*([self._source(entry)] if seeds else []), *(["rows"] if rows else [])]
        return Interval(low=max(0.0, entry.score - half), high=min(100.0, entry.score + half), by=", ".join(by))

    def p(self, one: Entry, other: Entry) -> float | None:
        """The two-sided p-value of two methods being equally good; None where they cannot be tested."""
        if self.untested(one, other):
            return None
        errors = [*self._seed_error(one), *self._seed_error(other)]
        if one.rows is not None and other.rows is not None:
            errors.append(row_error(gains_of(one.rows.tolist(), other.rows.tolist())))
        return p_of(one.score - other.score, errors)

    def untested(self, one: Entry, other: Entry) -> str:
        """Why two methods cannot be told apart, and the way out; empty where they can be tested."""
        if len(one.test_rows | other.test_rows) > 1:
            return "they scored other test rows"
        unknown = [entry.method for entry in (one, other) if not self._seed_error(entry)]
        return f"nobody knows by how much a seed moves {' or '.join(unknown)}; --seeds 0-4 trains more" if unknown else ""

    def _seed_error(self, entry: Entry) -> list[Error]:
        own = self.noise.of(SEEDS, entry.first, entry.first.main_score)
        return [(own.sd**2 / len(entry.records), own.df)] if own else []

    def _source(self, entry: Entry) -> str:
        """Whose noise: calibrated, of these seeds, or what the other methods of its backbone and task have in common."""
        if entry.key in self.calibrated:
            return "calibrated"
        return f"{len(entry.scores)} seeds" if len(entry.scores) > 1 else "others' seeds"


def row_error(points: Array) -> Error:
    """The variance of a mean over test rows, as if other rows were drawn; never below what so many rows resolve."""
    count = len(points)
    return max(float(points.var(ddof=1)) / count, resolution(count) ** 2), count - 1.0


def combined(errors: Sequence[Error]) -> tuple[float, float]:
    """The standard error of a sum, and its degrees of freedom (Satterthwaite 1946, Welch 1947)."""
    total = sum(variance for variance, _ in errors)
    return total**0.5, total**2 / sum(variance**2 / df for variance, df in errors)


def p_of(difference: float, errors: Sequence[Error]) -> float:
    """The two-sided p-value of no true difference between two means; without any error there is one or there is not."""
    known = [(variance, df) for variance, df in errors if variance > 0]
    if not known:
        return float(difference == 0)
    error, df = combined(known)
    return float(2 * special.stdtr(df, -abs(difference) / error))


def chance_of(entries: Sequence[Entry], calibrated: Noise) -> Chance:
    """The calibrated noise where it is of runs like these, and else what these seeds tell; pooled over cells of a kind."""
    profile = entries[0].first.profile
    rows = {entry.first.task: entry.first.data.rows["test"] for entry in entries if entry.first.data}
    known = {
        (cell, score): own
        for (cell, score), own in calibrated.measured.get(SEEDS, {}).items()
        if profile == calibrated.profile and calibrated.rows[task := cell.split("_")[1]] == rows.get(task)
    }
    sound = [entry for entry in entries if entry.first.data and not entry.objections]
    seeds = {entry.key: own for entry in sound if (own := deviation([entry.scores]))}
    return Chance(noise=Noise(profile=profile, rows=rows, measured={SEEDS: seeds | known}), calibrated=known.keys())


# Methods beside each other


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The methods of one backbone and task.

    Attributes:
        entries: the best score first, those that audits object to last.
        absent: methods that other backbones or tasks have.
    """

    task: str
    backbone: str
    entries: Sequence[Entry]
    chance: Chance
    absent: Sequence[str] = ()

    @cached_property
    def sound(self) -> list[Entry]:
        """The entries that no audit objects to."""
        return sound(self.entries)

    @cached_property
    def untested(self) -> dict[NamePair, str]:
        """By pair of methods that cannot be tested, why."""
        pairs = {frozenset((a.method, b.method)): self.chance.untested(a, b) for a, b in combinations(self.sound, 2)}
        return {pair: reason for pair, reason in pairs.items() if reason}

    @cached_property
    def p_values(self) -> dict[NamePair, float | None]:
        """By pair of methods; None where nothing can tell them."""
        return {frozenset((one.method, other.method)): self.chance.p(one, other) for one, other in combinations(self.sound, 2)}

    @cached_property
    def apart(self) -> set[NamePair]:
        """The pairs that are told apart. The chance that any of them is so by mistake is 5 % at most (Holm)."""
        tested = {pair: p for pair, p in self.p_values.items() if p is not None}
        return {pair for pair, p in holm(tested).items() if p < ALPHA}

    @cached_property
    def groups(self) -> dict[str, str]:
        """By method, the letters of its groups."""
        return compact_letters([entry.method for entry in self.sound], self.apart)

    @property
    def best(self) -> list[str]:
        """The methods that cannot be told from the one with the best score."""
        return [entry.method for entry in self.sound if not self.told(entry, self.sound[0])]

    def told(self, one: Entry, other: Entry) -> bool:
        """Whether two entries are told apart."""
        return frozenset((one.method, other.method)) in self.apart

    @cached_property
    def costs(self) -> list[str]:
        """The costs that were measured of all sound entries; a peak holds the tensors, which count where it is not known."""
        return [name for name in self.fronts if name != TENSORS or PEAK not in self.fronts]

    @property
    def peaks_are_shared(self) -> bool:
        """Whether all peaks were measured, some of them in a process to which other cells may have added."""
        return PEAK not in self.fronts and all(entry.peak_gib is not None for entry in self.sound)

    @cached_property
    def fronts(self) -> dict[str, list[Entry]]:
        """The front of each cost."""
        return fronts(self.entries)

    def on_front(self, cost: str) -> list[str]:
        """The methods that no other one is as good as for as little of this cost."""
        return [entry.method for entry in self.fronts.get(cost, ())]

    def standing(self, entry: Entry) -> tuple[str, str]:
        """Whether an entry is on the front of all costs together, and who disputes it.

        Returns:
            "yes"; "no" and a method that is as good for as little; or "perhaps" and a method that costs as little and whose
            lower score cannot be told from this one.
        """
        own, others = figures(entry, self.costs), [other for other in self.sound if other is not entry]
        beaten_by = next((other.method for other in others if dominates(figures(other, self.costs), own)), None)
        if beaten_by:
            return "no", beaten_by
        cheap = [other for other in others if all(a <= b for a, b in zip(figures(other, self.costs)[1:], own[1:], strict=True))]
        doubt = next((other.method for other in cheap if not self.told(entry, other)), None)
        return ("perhaps", doubt) if doubt else ("yes", "")

    @property
    def unlike(self) -> list[str]:
        """A sentence for everything in which the entries are not like for like."""
        return [sentence for what, fact in FACTS.items() if (sentence := _differing(what, fact, self.entries))]


def compared(runs: Mapping[Path, Sequence[Record]], calibrated: Noise) -> list[Comparison]:
    """The methods of each task and backbone beside each other; raises InputError where runs cannot be compared."""
    return beside_each_other(entries_of(runs), calibrated)


def beside_each_other(entries: Sequence[Entry], calibrated: Noise) -> list[Comparison]:
    """Entries of one profile by task and backbone; at least one."""
    chance = chance_of(entries, calibrated)
    methods = list(dict.fromkeys(entry.method for entry in entries))
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: study_place(entry.first.cell)):
        groups.setdefault((entry.first.task, entry.first.backbone), []).append(entry)
    return [
        Comparison(
            task=task,
            backbone=backbone,
            entries=sorted(own, key=lambda entry: (bool(entry.objections), -entry.score)),
            chance=chance,
            absent=[method for method in methods if method not in {entry.method for entry in own}],
        )
        for (task, backbone), own in groups.items()
    ]


def _differing(what: str, fact: Callable[[Record], str], entries: Sequence[Entry]) -> str:
    methods: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        methods[" and ".join(sorted({fact(record) for record in entry.records}))].append(entry.method)
    values = "; ".join(f"{value} ({', '.join(names)})" for value, names in methods.items())
    return f"not like for like, {what}: {values}" if len(methods) > 1 else ""


def compact_letters(names: Sequence[str], apart: Collection[NamePair]) -> dict[str, str]:
    """A compact letter display (Piepho 2004): two names share a letter unless they are told apart; `a` has the first name."""
    groups = {frozenset(names)}
    for pair in apart:
        split = {part for group in groups for part in ([group - {name} for name in pair] if pair <= group else [group])}
        groups = {group for group in split if not any(group < other for other in split)}
    ordered = sorted(groups, key=lambda group: sorted(map(names.index, group)))
    return {name: "".join(a for a, group in zip(ascii_letters, ordered, strict=False) if name in group) for name in names}


# In words

MIB = 2**20
COLUMNS = (
    Column(title="method", width=8),
    Column(title="points", right=True),
    Column(title="95 % interval", width=13),
    Column(title="by"),
    Column(title="group"),
    Column(title="MiB", width=6, right=True),
    Column(title="tensors", right=True),
    Column(title="GiB", width=6, right=True),
    Column(title="seconds", right=True),
    Column(title="over seeds"),
    Column(title="front"),
)
SUMMARY = (
    Column(title="task", width=6),
    Column(title="method", width=8),
    Column(title="best, or not told from it", right=True),
    Column(title="on the front", right=True, gap=2),
    Column(title="perhaps", right=True, gap=2),
)
LEGEND = (
    "points: the main score. by: what the interval rests on: noise between seeds (calibrated, of so many seeds, or of the "
    "other methods' seeds), test rows, or both",
    "group: methods that share a letter cannot be told apart (pairs, Holm, 5 % a table)",
    "MiB: what training changes and a checkpoint keeps; tensors: MiB of weights, gradients and optimizer state; GiB: the "
    "highest memory peak; seconds: of training",
    "*: no other method is as good for as little of this. front: the same of all costs together; no: the method in "
    "brackets is as good for as little; perhaps: it costs as little, and its lower score cannot be told from this one",
)
SHARED = "GiB is on no front: processes may have run other cells before, whose memory counts; --engine=process starts one each"

OF_QUICK = (
    "the quick profile trains micro backbones, which say nothing of full-size models; its learning rates were found with test "
    "scores in view, and a search on validation rows shows none more than a point better (reports/tuning-quick-cpu.md)"
)


def row(comparison: Comparison, entry: Entry) -> tuple[str, ...]:
    """A method's line."""
    interval = comparison.chance.interval(entry) if entry.scores else None
    return (
        entry.method,
        number(entry.score if entry.scores else None, 1),
        f"{interval.low:.1f} to {interval.high:.1f}" if interval else "-",
        interval.by if interval else "-",
        comparison.groups.get(entry.method, "-"),
        *(_cost(comparison, entry, name) for name in COSTS),
        f"{min(entry.seconds):.1f}-{max(entry.seconds):.1f}" if len(entry.seconds) > 1 else "-",
        _standing(comparison, entry),
    )


def _cost(comparison: Comparison, entry: Entry, name: str) -> str:
    figure = entry.peak_gib if name == PEAK else entry.costs[name]
    digits = {TRAINED: 2, TENSORS: 1, PEAK: 2, SECONDS: 1}[name]
    text = number(figure / MIB if figure is not None and name in (TRAINED, TENSORS) else figure, digits)
    return text + ("*" if entry.method in comparison.on_front(name) else " ")


def _standing(comparison: Comparison, entry: Entry) -> str:
    if entry.objections:
        return "audits failed"
    answer, other = comparison.standing(entry)
    return f"{answer} ({other})" if other else answer


def remarks(comparison: Comparison) -> list[str]:
    """A sentence for everything that limits what the table says."""
    notes = [f"left out of groups and front: {e.method}: {sentence}" for e in comparison.entries for sentence in e.objections]
    notes += [f"cannot tell {' and '.join(sorted(pair))} apart: {reason}" for pair, reason in comparison.untested.items()]
    absent = [name for name in COSTS if name not in comparison.fronts and not (name == PEAK and comparison.peaks_are_shared)]
    notes += [f"not measured of every method, so the front leaves it out: {name}" for name in absent]
    notes += comparison.unlike
    contended = [e.method for e in comparison.entries if any(r.device and r.device.contended for r in e.records)]
    notes += [f"measured on a device that others used: {', '.join(contended)}"] if contended else []
    return notes + ([f"not in this run: {', '.join(comparison.absent)}"] if comparison.absent else [])


def title(comparison: Comparison) -> str:
    """Task, backbone and score."""
    first = comparison.entries[0].first
    counts = [len(entry.records) for entry in comparison.entries]
    return f"{comparison.task} on {comparison.backbone}: {first.main_score}, {counted(counts)}"


def counted(seeds: Collection[int]) -> str:
    """How many seeds methods have, from the fewest to the most."""
    fewest, most = min(seeds), max(seeds)
    return f"{fewest} to {most} seeds" if fewest < most else "one seed" if most == 1 else f"{most} seeds"


def summary(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """By task and method: on how many of its backbones it is among the best, and on the front; empty for one backbone."""
    table = []
    for task in dict.fromkeys(comparison.task for comparison in comparisons):
        own = [comparison for comparison in comparisons if comparison.task == task]
        methods = dict.fromkeys(entry.method for comparison in own for entry in comparison.entries)
        table += [(task, *_counts(own, method)) for method in methods if len(own) > 1]
    return table


def _counts(own: Sequence[Comparison], method: str) -> tuple[str, ...]:
    ranked = [(comparison, entry) for comparison in own for entry in comparison.sound if entry.method == method]
    answers = [comparison.standing(entry)[0] for comparison, entry in ranked]
    best = sum(method in comparison.best for comparison, _ in ranked)
    return (method, *(f"{count} of {len(own)}" for count in (best, answers.count("yes"), answers.count("perhaps"))))


def legend(comparisons: Sequence[Comparison]) -> list[str]:
    """What the columns mean."""
    records = [entry.first for comparison in comparisons for entry in comparison.entries]
    shared = any(comparison.peaks_are_shared for comparison in comparisons)
    of_quick = any(record.profile == QUICK_PROFILE.id for record in records)
    return [*LEGEND, *([SHARED] if shared else []), *([OF_QUICK] if of_quick else [])]


def as_text(comparisons: Sequence[Comparison]) -> str:
    """A table for each task and backbone, the summary, and what the columns mean."""
    parts = []
    for one in comparisons:
        parts += [title(one), *lines(COLUMNS, [row(one, entry) for entry in one.entries]), *remarks(one), ""]
    counts = summary(comparisons)
    parts += [*lines(SUMMARY, counts), ""] if counts else []
    return "\n".join([*parts, *legend(comparisons)])


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """The same for a pull request or a report."""
    parts = []
    for one in comparisons:
        parts += [f"**{markdown(title(one))}**", "", *markdown_table(COLUMNS, [row(one, entry) for entry in one.entries]), ""]
        parts += [*(f"* {markdown(line)}" for line in remarks(one)), ""]
    counts = summary(comparisons)
    parts += [*markdown_table(SUMMARY, counts), ""] if counts else []
    return "\n".join([*parts, *(f"* {markdown(line)}" for line in legend(comparisons))])


def as_latex(comparisons: Sequence[Comparison]) -> str:
    """The same for a paper: a table for each task and backbone, with what limits it below."""
    parts = [r"% needs \usepackage{booktabs,graphicx}"]
    for one in comparisons:
        parts += ["", *latex_float(title(one), COLUMNS, [row(one, entry) for entry in one.entries], remarks(one))]
    counts = summary(comparisons)
    parts += ["", *latex_float("How often each method is among the best, and on the front", SUMMARY, counts)] if counts else []
    return "\n".join([*parts, "", *(f"% {line}" for line in legend(comparisons))])


FORMATS: Mapping[str, Callable[[Sequence[Comparison]], str]] = {"text": as_text, "markdown": as_markdown, "latex": as_latex}
