"""Compares methods by task and cost: fronts, and groups that cannot be told apart.

Methods are compared on one backbone and task at a time. Two chances separate their main scores: other seeds
(`tunegrid.results.noise`, calibrated, or of these very seeds) and other test rows, on which methods pair. Where both are known,
intervals and groups hold for both. Rows alone tell no methods apart: another seed moves a score by more. Needs no torch.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from scipy import special

from tunegrid.record import Record
from tunegrid.record.parts import GenerationRecord
from tunegrid.results.costs import ALIKE
from tunegrid.results.entries import Entry, entries_of, figures, fronts, sound
from tunegrid.results.fronts import NamePair, compact_letters, dominates
from tunegrid.results.noise import SEEDS, Noise, NoiseKey, deviation, resolution
from tunegrid.results.record_checks import adapts_head_alone
from tunegrid.results.statistics import ALPHA, Array, gains_of, holm

Error = tuple[float, float]  # a variance in squared points, and the degrees of freedom that it rests on


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
        rows = [] if one.rows is None or other.rows is None else [row_error(gains_of(one.rows.tolist(), other.rows.tolist()))]
        error, df = combined([*self._seed_error(one), *self._seed_error(other), *rows])
        return float(2 * special.stdtr(df, -abs(one.score - other.score) / error))

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


def chance_of(entries: Sequence[Entry], calibrated: Noise) -> Chance:
    """The calibrated noise where it is of runs like these, and else what these seeds tell; pooled over cells of a kind."""
    profile = entries[0].first.profile
    rows = {entry.first.task: entry.first.data.rows.test for entry in entries if entry.first.data}
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
        return [entry.method for entry in self.sound if not self._told(entry, self.sound[0])]

    def _told(self, one: Entry, other: Entry) -> bool:
        return frozenset((one.method, other.method)) in self.apart

    @cached_property
    def costs(self) -> list[str]:
        """The costs that were measured of all sound entries."""
        return list(self.fronts)

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
        doubt = next((other.method for other in cheap if not self._told(entry, other)), None)
        return ("perhaps", doubt) if doubt else ("yes", "")

    @property
    def unlike(self) -> list[str]:
        """A sentence for everything in which the entries are not like for like."""
        return [sentence for what, fact in FACTS.items() if (sentence := _differing(what, fact, self.entries))]


def compared(runs: Mapping[Path, Sequence[Record]], calibrated: Noise) -> list[Comparison]:
    """The methods of each task and backbone beside each other; raises InputError where runs cannot be compared."""
    entries = entries_of(runs)
    chance = chance_of(entries, calibrated)
    methods = list(dict.fromkeys(entry.method for entry in entries))
    groups: dict[tuple[str, str], list[Entry]] = {}
    for task in dict.fromkeys(entry.first.task for entry in entries):
        for entry in entries:
            if entry.first.task == task:
                groups.setdefault((task, entry.first.backbone), []).append(entry)
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


# Like for like


def _budget(record: Record) -> str:
    return f"{record.training.updates if record.training else 'no'} updates of {record.recipe.rows_per_update} rows"


def _search(generation: GenerationRecord | None) -> str:
    return f"num_beams {generation.num_beams}, max_new_tokens {generation.max_new_tokens}" if generation else "none"


FACTS: Mapping[str, Callable[[Record], str]] = {
    "budget": _budget,
    "precision": lambda record: record.training.precision if record.training else "unknown",
    "data": lambda record: record.data.fingerprint if record.data else "unknown",
    "what is adapted": lambda record: "the new head alone" if adapts_head_alone(record) else "the backbone",
    "search": lambda record: _search(record.recipe.generation),
    "device": lambda record: f"{record.device.name}, {record.device.threads or 'no'} threads" if record.device else "unknown",
    "ranks": lambda record: record.processes,
    "libraries": lambda record: ", ".join(f"{name} {record.versions.get(name)}" for name in ALIKE),
}


def _differing(what: str, fact: Callable[[Record], str], entries: Sequence[Entry]) -> str:
    methods: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        methods[" and ".join(sorted({fact(record) for record in entry.records}))].append(entry.method)
    values = "; ".join(f"{value} ({', '.join(names)})" for value, names in methods.items())
    return f"not like for like, {what}: {values}" if len(methods) > 1 else ""
