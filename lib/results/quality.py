"""Did scores get worse? In: records of both runs, by seed, and points by row. Out: a judgement on every bounded score.

The difference of mean scores is held to the training noise that applies (`lib.results.noise`), by a t-test; where no noise is
known, the rows' own changes are tested. A whole run of equal quality is called worse with a chance of at most 5 %: main scores
get most of it (Holm over the cells), all other scores together the rest, through one global test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lib.errors import InputError
from lib.record import Record
from lib.results.costs import Seeds
from lib.results.examples import Examples, read, read_points
from lib.results.judgements import Judgement, Verdict, judgement_of
from lib.results.looks import share_of_alpha
from lib.results.noise import PERTURBED, SEEDS, Deviation, Key, Noise, deviation, mean_score, resolution, same_start
from lib.results.numerics import Tolerances
from lib.results.statistics import (
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


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Runs of one cell that are compared, and the noise between them.

    Attributes:
        kind: of noise: PERTURBED, where `old` and `new` pair by seed and start alike, else SEEDS.
        old, new: records.
    """

    kind: str
    old: Sequence[Record]
    new: Sequence[Record]

    @property
    def factor(self) -> float:
        """The error of a difference of means, for a deviation of 1; paired runs deviate both, too."""
        return math.sqrt(1 / len(self.old) + 1 / len(self.new))


def pairings(old: Seeds, new: Seeds, tolerances: Tolerances) -> list[Pairing]:
    """How two runs of a cell can be compared, the narrowest noise first: by seed where they start alike, and all by all."""
    every = Pairing(kind=SEEDS, old=list(old.values()), new=list(new.values()))
    shared = [seed for seed in new if seed in old]
    if not shared or not all(same_start(old[seed], new[seed], tolerances) for seed in shared):
        return [every]
    return [Pairing(kind=PERTURBED, old=[old[seed] for seed in shared], new=[new[seed] for seed in shared]), every]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The points by row of a cell's runs, paired: a run to judge with the baseline's of its seed, else with any of it."""

    old: Seeds
    new: Seeds
    old_path: Path | None
    new_path: Path | None

    @cached_property
    def records(self) -> list[tuple[Record, Record]]:
        """The pairs of records, those of one seed first."""
        others = list(self.old.values())
        pairs = [
            (self.old.get(seed, others[place % len(others)]), record) for place, (seed, record) in enumerate(self.new.items())
        ]
        return sorted(pairs, key=lambda pair: pair[0].seeds.seed != pair[1].seeds.seed)

    @cached_property
    def points(self) -> list[tuple[Points, Points]]:
        """The pairs of points by row; empty where any is missing. Raises InputError where two scored different test rows."""
        for before, after in self.records:
            check_rows(before, after)
        pairs = [(read_points(before, self.old_path), read_points(after, self.new_path)) for before, after in self.records]
        return [(before, after) for before, after in pairs if before and after] if all(a and b for a, b in pairs) else []

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


def check_rows(before: Record, after: Record) -> None:
    """Raises InputError where two records were scored on different test rows."""
    if before.examples and after.examples and before.examples.rows_hash != after.examples.rows_hash:
        hashes = f"{before.examples.rows_hash} and {after.examples.rows_hash}"
        raise InputError(f"{before.cell}: the two runs scored different test rows ({hashes}) and cannot be paired")


# Effects


def effect_of(
    metric: str, pairs: Sequence[Pairing], rows: Rows, gains: Sequence[Array], noise: Noise
) -> tuple[Effect, str] | None:
    """The effect on a score that has points by row, and which noise it was held to; None where it cannot be tested."""
    for pairing in pairs:
        measured = noise.of(pairing.kind, pairing.old[0], metric)
        if measured:
            return _held_to(measured, metric, pairing, gains), WORDS[pairing.kind]
    every = pairs[-1]
    own = deviation([[float(record.scores[metric] or 0) for record in records] for records in (every.old, every.new)])
    if own:
        return _held_to(own, metric, every, gains), "between these seeds"
    examples = rows.first_examples
    by_rows = _by_rows(metric, *rows.records[0], *examples) if examples else None
    return (by_rows, "of rows alone") if by_rows else None


def _held_to(noise: Deviation, metric: str, pairing: Pairing, gains: Sequence[Array]) -> TrainingEffect:
    count = len(gains[0])
    sd = max(noise.sd, resolution(count), row_deviation(gains))
    return by_training(
        mean_score(pairing.new, metric) - mean_score(pairing.old, metric),
        sd * pairing.factor,
        noise.df,
        rows=count,
        flips=(sum(int((each < 0).sum()) for each in gains), sum(int((each > 0).sum()) for each in gains)),
        tail=noise.tail_of(len(pairing.new)),
    )


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
    """A verdict on a score, and the p-value of its being worse: of a main score adjusted over cells and looks."""

    verdict: Verdict
    p: float


def decide(
    effects: Mapping[Key, Effect], mains: Mapping[str, str], margins: Mapping[str, float], share: float = 1.0
) -> dict[Key, Decision]:
    """The verdicts on a whole run.

    Args:
        effects: by cell and score.
        mains: the main score of each cell.
        margins: the drop that is no regression yet, by score.
        share: of alpha, where a run is looked at several times.
    """
    main = {key: effect for key, effect in effects.items() if mains[key[0]] == key[1]}
    other = {key: effect for key, effect in effects.items() if key not in main}
    return _main(main, margins, share) | _others(other, margins, share)


def _main(effects: Mapping[Key, Effect], margins: Mapping[str, float], share: float) -> dict[Key, Decision]:
    worse = holm({key: min(1.0, effect.p_worse / share) for key, effect in effects.items()})
    better = holm({key: min(1.0, effect.p_better / share) for key, effect in effects.items()})
    return {
        key: Decision(verdict=verdict_of(effect, worse[key], better[key], margin_of(margins, key[1])), p=worse[key])
        for key, effect in effects.items()
    }


def _others(effects: Mapping[Key, Effect], margins: Mapping[str, float], share: float) -> dict[Key, Decision]:
    """Where the global test says that some score dropped, the most significant drop of at least its margin is worse."""
    bonferroni = max(1, len(effects)) / share
    decisions = {}
    for key, effect in effects.items():
        verdict = verdict_of(effect, 1.0, min(1.0, effect.p_better * bonferroni), margin_of(margins, key[1]))
        decisions[key] = Decision(verdict=verdict, p=effect.p_worse)
    dropped = [key for key, effect in effects.items() if effect.points <= -margin_of(margins, key[1])]
    overall = cauchy([effect.p_worse for effect in effects.values()]) / share
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
        margins: the drop that is no regression yet, by score.
        noise: what was calibrated.
        tolerances: how far first losses may lie apart and still be rounding.
        look, looks: which look at the run this is, of how many at most.
    """

    margins: Mapping[str, float]
    noise: Noise
    tolerances: Tolerances
    look: int = 1
    looks: int = 1

    def judged(self, cells: Sequence[Rows]) -> list[Judgement]:
        """A judgement on every bounded score of every cell."""
        effects: dict[Key, tuple[Effect, str]] = {}
        untested = []
        for rows in cells:
            record = rows.records[0][0]
            pairs = pairings(rows.old, rows.new, self.tolerances)
            for metric in record.bounded_scores:
                answer = unmeasured(metric, rows) or self._tested(metric, pairs, rows)
                if isinstance(answer, Judgement):
                    untested.append(answer)
                else:
                    effects[record.cell, metric] = answer
        return untested + self._by_tests({rows.records[0][0].cell: rows for rows in cells}, effects)

    def _tested(self, metric: str, pairs: Sequence[Pairing], rows: Rows) -> tuple[Effect, str] | Judgement:
        gains = rows.gains(metric)
        answer = effect_of(metric, pairs, rows, gains, self.noise) if gains else None
        return (answer[0].at(share_of_alpha(self.look, self.looks)), answer[1]) if answer else _untestable(metric, pairs[-1])

    def _by_tests(self, cells: Mapping[str, Rows], tested: Mapping[Key, tuple[Effect, str]]) -> list[Judgement]:
        share = share_of_alpha(self.look, self.looks)
        records = {cell: rows.records[0][0] for cell, rows in cells.items()}
        mains = {cell: record.main_score for cell, record in records.items()}
        effects = {key: effect for key, (effect, _) in tested.items()}
        mains_tested = sum(mains[cell] == metric for cell, metric in effects)
        judged = []
        for key, decision in decide(effects, mains, self.margins, share).items():
            is_main = mains[key[0]] == key[1]
            tests = mains_tested if is_main else len(effects) - mains_tested
            alpha = (MAIN_ALPHA if is_main else OTHER_ALPHA) * share / tests
            evidence = self._evidence(*tested[key], key[1], alpha, len(cells[key[0]].new))
            judged.append(judgement_of(records[key[0]], key[1], decision.verdict, p=decision.p, **evidence))
        return judged

    def _evidence(self, effect: Effect, noise: str, metric: str, alpha: float, seeds: int) -> dict[str, object]:
        margin = margin_of(self.margins, metric)
        of_training = isinstance(effect, TrainingEffect)
        lost, won = effect.flips
        rows = f"{effect.rows}" if seeds == 1 or not of_training else f"{seeds} x {effect.rows}"
        return {
            "effect": effect.points,
            "low": effect.low,
            "high": effect.high,
            "smallest": effect.smallest(alpha, margin),
            "error": effect.error if of_training else None,
            "critical": effect.critical(alpha) if isinstance(effect, TrainingEffect) else None,
            "margin": margin,
            "seeds": seeds,
            "detail": f"{lost} rows lost, {won} gained of {rows}; noise {noise}: error {effect.error:.2f}; margin {margin:.1f}",
        }


def unmeasured(metric: str, rows: Rows) -> Judgement | None:
    """The verdict where a score is no number: worse, if only the new one is none."""
    old, new = (
        next((score for record in seeds.values() if not _finite(score := record.scores.get(metric))), 0.0)
        for seeds in (rows.old, rows.new)
    )
    if _finite(old) and _finite(new):
        return None
    verdict = Verdict.WORSE if _finite(old) else Verdict.CANNOT_TELL
    return judgement_of(
        rows.records[0][0], metric, verdict, detail=f"the {'new' if _finite(old) else 'old'} score is no number"
    )


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _untestable(metric: str, every: Pairing) -> Judgement:
    """Where single rows have no points, a change of the score is shown and not judged."""
    effect = mean_score(every.new, metric) - mean_score(every.old, metric)
    return judgement_of(every.old[0], metric, Verdict.CANNOT_TELL, effect=effect, detail="no points by row to test")
