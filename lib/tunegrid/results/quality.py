"""Judges whether scores got worse: one judgement per bounded score of two runs.

The difference of mean scores is held to the training noise that applies (`tunegrid.results.noise`), by a t-test, with or
without points by row. Where no noise was calibrated, the seeds of the two runs tell their own. With one seed on each side,
changes of single rows are tested where both runs are one training but for rounding; where they are not, nothing can be told.

A whole run of equal quality is called worse with a chance of at most 5 %: main scores get most of it (Holm over the cells), all
other scores together the rest, through one global test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.alike import check_rows
from tunegrid.results.examples import Examples, read
from tunegrid.results.judgements import Judgement, RecordsBySeed, Verdict, judgement_of
from tunegrid.results.noise import PERTURBED, SEEDS, Deviation, Noise, NoiseKey, deviation, mean_score, resolution
from tunegrid.results.numerics import Tolerances, same_course
from tunegrid.results.statistics import (
    ALPHA,
    Array,
    Effect,
    TrainingEffect,
    by_training,
    cauchy,
    gains_of,
    holm,
    paired,
    paired_macro_f1,
    row_deviation,
)

MAIN_ALPHA, OTHER_ALPHA = 0.9 * ALPHA, 0.1 * ALPHA
Points = Mapping[str, Sequence[float]]  # of each row, by metric
WORDS = {PERTURBED: "of one seed, perturbed", SEEDS: "between seeds"}
MORE_SEEDS = "no noise was calibrated, and one seed a side cannot tell training noise from a change: give both runs --seeds 0-4"


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Runs of one cell that are compared, and the noise between them.

    Attributes:
        kind: of noise: PERTURBED, where `old` and `new` pair by seed and are of one training but for rounding, else SEEDS.
        old, new: records.
    """

    kind: str
    old: Sequence[Record]
    new: Sequence[Record]

    @property
    def factor(self) -> float:
        """The error of a difference of means, for a deviation of 1; paired runs deviate both, too."""
        return math.sqrt(1 / len(self.old) + 1 / len(self.new))


def pairings(old: RecordsBySeed, new: RecordsBySeed, tolerances: Tolerances) -> list[Pairing]:
    """How two runs of a cell can be compared, the narrowest noise first: by seed if each differs by rounding; all by all."""
    every = Pairing(kind=SEEDS, old=list(old.values()), new=list(new.values()))
    if not all(seed in old and same_course(old[seed], record, tolerances) for seed, record in new.items()):
        return [every]
    return [Pairing(kind=PERTURBED, old=[old[seed] for seed in new], new=list(new.values())), every]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The points by row of a cell's runs, paired: a run to judge with the baseline's of its seed, else with any of it."""

    old: RecordsBySeed
    new: RecordsBySeed
    old_path: Path | None
    new_path: Path | None

    @property
    def finished(self) -> "Rows | None":
        """Those of runs that trained to their ends; None where a side has none."""
        old, new = ({seed: record for seed, record in own.items() if record.finished} for own in (self.old, self.new))
        return replace(self, old=old, new=new) if old and new else None

    @cached_property
    def records(self) -> list[tuple[Record, Record]]:
        """The pairs of records, those of one seed first."""
        others = list(self.old.values())
        pairs = [
            (self.old.get(seed, others[index % len(others)]), record) for index, (seed, record) in enumerate(self.new.items())
        ]
        return sorted(pairs, key=lambda pair: pair[0].seeds.seed != pair[1].seeds.seed)

    @cached_property
    def points(self) -> list[tuple[Points, Points]]:
        """The pairs of points by row; empty where any is missing. Raises InputError where two scored different test rows."""
        for before, after in self.records:
            check_rows(before, after)
        kept = [(read(before, self.old_path), read(after, self.new_path)) for before, after in self.records]
        pairs = [(old.points, new.points) for old, new in kept if old and old.points and new and new.points]
        return pairs if len(pairs) == len(kept) else []

    @property
    def first_examples(self) -> tuple[Examples, Examples] | None:
        """What the rows of the first pair scored and answered."""
        (old, new), *_ = self.records
        before, after = read(old, self.old_path), read(new, self.new_path)
        return (before, after) if before and after else None

    def gains(self, metric: str) -> list[Array]:
        """New minus old points of each row, by pair; of macro F1, the hits' points. Empty where there are no points by row."""
        name = "accuracy" if metric == "f1_macro" else metric
        if not all(name in points for pair in self.points for points in pair):
            return []
        try:
            return [gains_of(before[name], after[name]) for before, after in self.points]
        except ValueError as error:
            raise InputError(f"{self.records[0][0].cell}, {metric}: {error}") from None

    def unchanged(self, metric: str) -> bool:
        """Whether the score of each pair is equal to the last digit, and no row's points are others."""
        scores = [(before.scores.get(metric), after.scores.get(metric)) for before, after in self.records]
        if not all(_finite(before) and before == after for before, after in scores):
            return False
        files = [
            (before.examples and before.examples.file, after.examples and after.examples.file) for before, after in self.records
        ]
        gains = self.gains(metric)
        return all(before and before == after for before, after in files) or (bool(gains) and not any(map(np.any, gains)))


# Effects


@dataclass(frozen=True, kw_only=True)
class PairedEffect:
    """An effect on a score, the runs that it is of, and the noise that it was held to, in words."""

    effect: Effect
    pairing: Pairing
    noise: str


def tested(metric: str, pairs: Sequence[Pairing], rows: Rows, noise: Noise) -> PairedEffect | None:
    """The effect on a score; None where nothing tells training noise from a change."""
    gains = rows.gains(metric)
    for pairing in pairs:
        measured = noise.of(pairing.kind, pairing.old[0], metric)
        if measured:
            return PairedEffect(effect=_held_to(measured, metric, pairing, gains), pairing=pairing, noise=WORDS[pairing.kind])
    every = pairs[-1]
    own = deviation([[float(record.scores[metric] or 0) for record in records] for records in (every.old, every.new)])
    if own:
        return PairedEffect(effect=_held_to(own, metric, every, gains), pairing=every, noise="between these seeds")
    examples = rows.first_examples if pairs[0].kind == PERTURBED and gains else None
    by_rows = _by_rows(metric, *rows.records[0], *examples) if examples else None
    return PairedEffect(effect=by_rows, pairing=pairs[0], noise="of rows alone") if by_rows else None


def _held_to(noise: Deviation, metric: str, pairing: Pairing, gains: Sequence[Array]) -> TrainingEffect:
    """The effect on mean scores; points by row, where they are at hand, widen a noise that is too small."""
    data = pairing.old[0].data
    count = len(gains[0]) if gains else data.rows["test"] if data else 1
    sd = max(noise.sd, resolution(count, metric), row_deviation(gains) if gains else 0.0)
    return by_training(
        mean_score(pairing.new, metric) - mean_score(pairing.old, metric),
        sd * pairing.factor,
        noise.df,
        rows=count,
        flips=_flips(gains) if gains else None,
        tail=noise.tail_of(len(pairing.new)),
    )


def _flips(gains: Sequence[Array]) -> tuple[int, int]:
    """Rows that lost points, and rows that gained some, of all pairs."""
    return sum(int((each < 0).sum()) for each in gains), sum(int((each > 0).sum()) for each in gains)


def _by_rows(metric: str, record: Record, new: Record, before: Examples, after: Examples) -> Effect | None:
    """The effect on the first pair. Of two labels, a missed row's true one is the other; with more, the examples hold it."""
    if metric != "f1_macro" or metric in before.points:
        return paired(before.points[metric], after.points[metric])
    truth = _true_labels(record, before)
    if truth is None:
        return None
    old_labels, new_labels = ([int(label) for label in examples.predictions] for examples in (before, after))
    return paired_macro_f1(truth, old_labels, new_labels, len(record.labels))


def _true_labels(record: Record, examples: Examples) -> list[int] | None:
    if examples.references is not None:
        return [int(label) for label in examples.references]
    if len(record.labels) != 2:
        return None  # saved before references were
    hits = zip(examples.predictions, examples.points["accuracy"], strict=True)
    return [int(label) if hit else 1 - int(label) for label, hit in hits]


# Verdicts


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A verdict on a score, and the p-value of its being worse: of a main score adjusted over cells."""

    verdict: Verdict
    p: float


def decide(
    effects: Mapping[NoiseKey, Effect],
    mains: Mapping[str, str],
    margins: Mapping[str, float],
) -> dict[NoiseKey, Decision]:
    """The verdicts on a whole run.

    Args:
        effects: by cell and score.
        mains: the main score of each cell.
        margins: the smallest drop that counts as a regression, by score.
    """
    margin = {key: margin_of(margins, key[1]) for key in effects}
    main = {key: effect for key, effect in effects.items() if mains[key[0]] == key[1]}
    other = {key: effect for key, effect in effects.items() if key not in main}
    worse, better = (holm({key: getattr(effect, p) for key, effect in main.items()}) for p in ("p_worse", "p_better"))
    decisions = {
        key: Decision(verdict=verdict_of(effect, worse[key], better[key], margin[key]), p=worse[key])
        for key, effect in main.items()
    }
    return decisions | _others(other, margin)


def _others(effects: Mapping[NoiseKey, Effect], margin: Mapping[NoiseKey, float]) -> dict[NoiseKey, Decision]:
    """Where the global test says that some score dropped, the most significant drop of at least its margin is worse."""
    bonferroni = max(1, len(effects))
    decisions = {}
    for key, effect in effects.items():
        verdict = verdict_of(effect, 1.0, min(1.0, effect.p_better * bonferroni), margin[key])
        decisions[key] = Decision(verdict=verdict, p=effect.p_worse)
    dropped = [key for key, effect in effects.items() if effect.points <= -margin[key]]
    overall = cauchy([effect.p_worse for effect in effects.values()])
    if dropped and overall < OTHER_ALPHA:
        worst = min(dropped, key=lambda key: effects[key].p_worse)
        decisions[worst] = Decision(verdict=Verdict.WORSE, p=effects[worst].p_worse)
    return decisions


def margin_of(margins: Mapping[str, float], metric: str) -> float:
    """A score's own margin, or the one for others."""
    return margins.get(metric, margins["other"])


def verdict_of(effect: Effect, p_worse: float, p_better: float, margin: float) -> Verdict:
    """The verdict on a score; p-values are adjusted."""
    if p_worse < MAIN_ALPHA and effect.points <= -margin:
        return Verdict.WORSE
    if p_better < MAIN_ALPHA:
        return Verdict.BETTER
    return Verdict.SAME if effect.low > -margin else Verdict.CANNOT_TELL


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What scores are judged by.

    Attributes:
        margins: the smallest drop that counts as a regression, by score.
        noise: what was calibrated.
        tolerances: how far figures and curves of losses may lie apart and still be rounding.
    """

    margins: Mapping[str, float]
    noise: Noise
    tolerances: Tolerances

    def judged(self, cells: Sequence[Rows]) -> list[Judgement]:
        """A judgement on every bounded score of every cell."""
        tests: dict[NoiseKey, PairedEffect] = {}
        untested = []
        for rows in cells:
            record = rows.records[0][0]
            if not any(one.scores for pair in rows.records for one in pair):
                continue  # a footprint scores nothing
            pairs = pairings(rows.old, rows.new, self.tolerances)
            for metric in record.bounded_scores:
                missing = unmeasured(metric, rows)
                test = None if missing else tested(metric, pairs, rows, self.noise)
                if test:
                    tests[record.cell, metric] = test
                else:
                    untested.append(missing or _untestable(metric, pairs, rows))
        by_cell = {rows.records[0][0].cell: rows for rows in cells}
        judgements = untested + self._by_tests(by_cell, tests)
        return [_unchanged(j, by_cell[j.cell]) if by_cell[j.cell].unchanged(j.quantity) else j for j in judgements]

    def _by_tests(self, cells: Mapping[str, Rows], tests: Mapping[NoiseKey, PairedEffect]) -> list[Judgement]:
        records = {cell: rows.records[0][0] for cell, rows in cells.items()}
        mains = {cell: record.main_score for cell, record in records.items()}
        effects = {key: test.effect for key, test in tests.items()}
        mains_tested = sum(mains[cell] == metric for cell, metric in effects)
        judged = []
        for key, decision in decide(effects, mains, self.margins).items():
            is_main = mains[key[0]] == key[1]
            count = mains_tested if is_main else len(effects) - mains_tested
            alpha = (MAIN_ALPHA if is_main else OTHER_ALPHA) / count
            evidence = self._evidence(tests[key], key[1], alpha, len(cells[key[0]].new))
            judged.append(judgement_of(records[key[0]], key[1], decision.verdict, p=decision.p, **evidence))
        return judged

    def _evidence(self, test: PairedEffect, metric: str, alpha: float, seeds: int) -> dict[str, object]:
        effect, margin = test.effect, margin_of(self.margins, metric)
        of_training = isinstance(effect, TrainingEffect)
        rows = _rows_in_words(effect, seeds if of_training else 1)
        return {
            **_means(metric, test.pairing),
            "effect": effect.points,
            "low": effect.low,
            "high": effect.high,
            "smallest": effect.smallest(alpha, margin),
            "error": effect.error if of_training else None,
            "margin": margin,
            "seeds": seeds,
            "detail": f"{rows}; noise {test.noise}: error {effect.error:.2f}; margin {_shown(margin)}",
        }


def _rows_in_words(effect: Effect, seeds: int) -> str:
    if effect.flips is None:
        return "by scores alone, no rows were at hand"
    lost, won = effect.flips
    return f"{lost} rows lost, {won} gained of {effect.rows if seeds == 1 else f'{seeds} x {effect.rows}'}"


def _shown(margin: float) -> str:
    """A margin with one digit, and with more where it has more."""
    return f"{margin:.1f}" if round(margin, 1) == margin else f"{margin:g}"


def _means(metric: str, pairing: Pairing) -> dict[str, float]:
    """The mean scores of the runs that were paired."""
    return {"before": mean_score(pairing.old, metric), "after": mean_score(pairing.new, metric)}


def unmeasured(metric: str, rows: Rows) -> Judgement | None:
    """The verdict where a score is not a number: worse, if only the new one is not."""
    old, new = (
        next((score for record in seeds.values() if not _finite(score := record.scores.get(metric))), 0.0)
        for seeds in (rows.old, rows.new)
    )
    if _finite(old) and _finite(new):
        return None
    verdict = Verdict.WORSE if _finite(old) else Verdict.CANNOT_TELL
    return judgement_of(
        rows.records[0][0], metric, verdict, detail=f"the {'new' if _finite(old) else 'old'} score is not a number"
    )


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _untestable(metric: str, pairs: Sequence[Pairing], rows: Rows) -> Judgement:
    """Where nothing tells noise from a change, the change is shown and not judged."""
    no_rows = pairs[0].kind == PERTURBED and not rows.gains(metric)
    means = _means(metric, pairs[0])
    return judgement_of(
        pairs[0].old[0],
        metric,
        Verdict.CANNOT_TELL,
        **means,
        effect=means["after"] - means["before"],
        detail=f"no points by row to test; {MORE_SEEDS}" if no_rows else MORE_SEEDS,
    )


def _unchanged(judgement: Judgement, rows: Rows) -> Judgement:
    """The judgement on a score that is equal to the last digit, row by row: there is nothing to tell."""
    before = mean_score([record for record, _ in rows.records], judgement.quantity)
    return replace(
        judgement,
        verdict=Verdict.SAME,
        before=before,
        after=before,
        effect=0.0,
        low=0.0,
        high=0.0,
        detail="equal to the last digit, and no row lost or gained points",
    )
