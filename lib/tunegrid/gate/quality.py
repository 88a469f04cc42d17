"""Judges whether scores got worse, with one judgement per cell and bounded score.

The difference between mean scores is compared with the training noise (`tunegrid.gate.noise`) by a
t-test on the noise's `Scale`. Per-row points are optional. If no noise was calibrated, it is
estimated from the seeds of the two runs. With one seed on each side, it is estimated from single
rows, provided that both are the same training run up to rounding; otherwise nothing can be decided.
The chance that any score of an equally good run is called worse is at most 5 %. Most of this chance
goes to the main scores, and all other scores share the rest.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tunegrid.errors import InputError
from tunegrid.gate.judgements import Judgement, RecordsBySeed, Verdict, make_judgement
from tunegrid.gate.noise import (
    PERTURBED,
    SEEDS,
    Deviation,
    Noise,
    NoiseKey,
    Scale,
    deviation,
    make_scale,
    mean_score,
)
from tunegrid.gate.statistics import ALPHA, Array, Effect, by_training, holm, row_deviation
from tunegrid.record import Record
from tunegrid.runs.examples import read
from tunegrid.words import count, phrase

MAIN_ALPHA = 0.9 * ALPHA
OTHER_ALPHA = 0.1 * ALPHA
RowPoints = Mapping[str, Sequence[float]]  # each row's points by metric, and its texts
NO_NUMBER = "score is not a number"
MORE_SEEDS = (
    "noise was not calibrated, and one seed on each side does not show it: "
    "give both runs --seeds 0-4"
)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A cell's old and new runs, with the points of their test rows.

    Each new run is paired with the old run of the same seed, or with any old run if there is none.
    """

    old: RecordsBySeed
    new: RecordsBySeed
    old_path: Path | None
    new_path: Path | None

    @property
    def cell(self) -> str:
        """The cell's id."""
        return self.records[0][0].cell

    @cached_property
    def records(self) -> list[tuple[Record, Record]]:
        """The (old, new) pairs of records; pairs with the same seed come first."""
        baseline = list(self.old.values())
        pairs = []
        for index, (seed, record) in enumerate(self.new.items()):
            pairs.append((self.old.get(seed, baseline[index % len(baseline)]), record))
        return sorted(pairs, key=lambda pair: pair[0].seeds.seed != pair[1].seeds.seed)

    @property
    def has_scores(self) -> bool:
        """True if any of these records was scored."""
        return any(old.scores or new.scores for old, new in self.records)

    @property
    def other_recipe(self) -> str:
        """A clause naming the fields in which an old and a new recipe differ; empty if none do."""
        clauses = (other_recipe(*pair) for pair in product(self.old.values(), self.new.values()))
        return next(filter(None, clauses), "")

    @cached_property
    def points(self) -> list[tuple[RowPoints, RowPoints]]:
        """The per-row points of each (old, new) pair; empty if any are missing.

        Raises InputError if two records scored different test rows, or either scored none.
        """
        for before, after in self.records:
            check_rows(before, after)
        pairs = []
        for before, after in self.records:
            old = read(before, self.old_path)
            new = read(after, self.new_path)
            if old is not None and new is not None:
                pairs.append((old, new))
        return pairs if len(pairs) == len(self.records) else []

    def gains(self, metric: str) -> list[Array]:
        """The points that each row gained, one array per pair; empty if rows have no points.

        Macro F1 has no per-row points, so those of accuracy are used instead.
        """
        name = "accuracy" if metric == "f1_macro" else metric
        gains = []
        for old, new in self.points:
            if name not in old or name not in new:
                return []
            gains.append(np.asarray(new[name], float) - np.asarray(old[name], float))
        return gains

    def check_equal(self, judgement: Judgement) -> Judgement:
        """Returns the judgement, changed to *same* if score and rows are equal in every pair."""
        metric = judgement.quantity
        if judgement.verdict is Verdict.NOT_COMPARABLE:
            return judgement
        has_same_files = True
        for before, after in self.records:
            score = before.scores.get(metric)
            if score is None or score != after.scores.get(metric):
                return judgement
            old = before.examples and before.examples.file
            new = after.examples and after.examples.file
            has_same_files = has_same_files and bool(old) and old == new
        gains = self.gains(metric)
        if not has_same_files and (not gains or any(map(np.any, gains))):
            return judgement
        score = mean_score([before for before, _ in self.records], metric)
        return replace(
            judgement,
            verdict=Verdict.SAME,
            before=score,
            after=score,
            effect=0.0,
            low=0.0,
            high=0.0,
            detail="equal to the last digit, and no row lost or gained points",
        )


def check_rows(before: Record, after: Record) -> None:
    """Raises InputError if two records scored different test rows, or either scored none."""
    for record in (before, after):
        if record.data and not record.data.rows["test"]:
            raise InputError(f"{record.cell}: a run scored it on 0 test rows; leave that run out")
    if before.examples and after.examples and before.examples.rows_hash != after.examples.rows_hash:
        raise InputError(
            f"{before.cell}: the two runs scored different test rows, so their scores cannot be "
            "compared; run the older one again with these rows"
        )


class Reference(NamedTuple):
    """The noise against which a score's change is tested, and the old records to compare with."""

    words: str
    old: Sequence[Record]
    spread: Deviation | None


def find_reference(
    metric: str, rows: Rows, one_training: bool, noise: Noise, scale: Scale, gains: Sequence[Array]
) -> Reference:
    """Finds the most specific noise known for a score; its `spread` is None if none is known."""
    baseline = list(rows.old.values())
    peers = baseline
    if one_training:
        peers = [rows.old[seed] for seed in rows.new]
        spread = noise.find(PERTURBED, peers[0], metric)
        if spread:
            return Reference("of one seed, perturbed", peers, spread)
    spread = noise.find(SEEDS, baseline[0], metric)
    if spread:
        return Reference("between seeds", baseline, spread)
    groups = []
    for records in (baseline, rows.new.values()):
        groups.append([scale.position(record.scores[metric] or 0) for record in records])
    spread = deviation(groups)
    if spread:
        return Reference("between these seeds", baseline, spread)
    if one_training and gains:
        sd = float(gains[0].std() / (2 * len(gains[0])) ** 0.5)
        spread = Deviation(sd=sd * scale.per_point(mean_score(peers, metric)), df=math.inf)
    return Reference("of rows alone", peers, spread)


def weigh(
    metric: str,
    rows: Rows,
    one_training: bool,
    noise: Noise,
    margin: float,
) -> tuple[dict[str, Any], Effect | None]:
    """The evidence for a score's change, and the effect, which is None if no noise is known."""
    gains = rows.gains(metric)
    data = next(iter(rows.old.values())).data
    test_rows = data.rows["test"] if data else 1
    if gains:
        test_rows = len(gains[0])
    scale = make_scale(test_rows, metric)
    words, old, spread = find_reference(metric, rows, one_training, noise, scale, gains)
    new = list(rows.new.values())
    before = mean_score(old, metric)
    after = mean_score(new, metric)
    evidence: dict[str, Any] = {"before": before, "after": after, "effect": after - before}
    if not spread:
        lack = "no points per row to test; " if one_training else ""
        return evidence | {"detail": f"{lack}{MORE_SEEDS}"}, None
    sd = max(spread.sd, scale.resolution(before))
    changes = "from scores alone: no rows are available"
    if gains:
        # Points by row widen noise that is too small.
        sd = max(sd, row_deviation(gains) * scale.per_point(before))
        losses = sum(int((gain < 0).sum()) for gain in gains)
        wins = sum(int((gain > 0).sum()) for gain in gains)
        total = f"{len(new)} x {test_rows}" if len(new) > 1 else test_rows
        changes = f"{count(losses, 'row')} lost, {wins} gained of {total}"
    elif rows.points:
        changes = "from scores alone: this metric scores no single rows"
    error = sd * math.sqrt(1 / len(old) + 1 / len(new))
    effect = by_training(before, after, error, spread.df, scale)
    margin_text = f"{margin:.1f}" if round(margin, 1) == margin else f"{margin:g}"
    detail = f"{changes}; noise {words}: error {effect.error:.2f}; margin {margin_text}"
    evidence |= {"low": effect.low, "high": effect.high, "error": effect.error}
    return evidence | {"margin": margin, "seeds": len(new), "detail": detail}, effect


class Decision(NamedTuple):
    """A verdict, and the smallest drop that would be called worse."""

    verdict: Verdict
    min_drop: float


def decide(
    effects: Mapping[NoiseKey, Effect], mains: Mapping[str, str], margins: Mapping[str, float]
) -> dict[NoiseKey, Decision]:
    """Decides the verdict on each effect.

    P-values are adjusted (Holm 1979) separately for main scores and for all other scores.
    """
    decisions: dict[NoiseKey, Decision] = {}
    for is_main, alpha in ((True, MAIN_ALPHA), (False, OTHER_ALPHA)):
        family = {}
        for (cell, metric), effect in effects.items():
            if (mains[cell] == metric) == is_main:
                family[cell, metric] = effect
        worse = holm({key: effect.p_worse for key, effect in family.items()})
        better = holm({key: effect.p_better for key, effect in family.items()})
        for key, effect in family.items():
            margin = margins.get(key[1], margins["other"])
            verdict = effect_verdict(effect, worse[key], better[key], margin, alpha)
            min_drop = effect.detectable_drop(alpha / len(family), margin)
            decisions[key] = Decision(verdict, min_drop)
    return decisions


def effect_verdict(
    effect: Effect,
    p_worse: float,
    p_better: float,
    margin: float,
    alpha: float,
) -> Verdict:
    """The verdict on an effect: a change must be significant and reach the margin.

    A gain that rounds to 0.000 does not count as better.
    """
    if p_worse < alpha and effect.points <= -margin:
        return Verdict.WORSE
    if p_better < alpha and effect.points >= margin and round(effect.points, 3):
        return Verdict.BETTER
    return Verdict.SAME if effect.low > -margin else Verdict.CANNOT_TELL


def assess(
    cells: Sequence[Rows],
    one_training: Collection[str],
    margins: Mapping[str, float],
    noise: Noise,
) -> list[Judgement]:
    """Judges each bounded score of those cells that have scores.

    The old and new runs of cells in `one_training` differ only by rounding. Scores from different
    recipes are not compared.
    """
    by_cell = {rows.cell: rows for rows in cells if rows.has_scores}
    mains = {cell: rows.records[0][0].main_score for cell, rows in by_cell.items()}
    effects: dict[NoiseKey, Effect] = {}
    evidence: dict[NoiseKey, dict[str, Any]] = {}
    judgements = []
    for cell, rows in by_cell.items():
        first = rows.records[0][0]
        judge = partial(make_judgement, first)
        recipe_clause = rows.other_recipe
        for metric in first.bounded_scores:
            if recipe_clause:
                judgements.append(judge(metric, Verdict.NOT_COMPARABLE, detail=recipe_clause))
                continue
            if not has_numbers(rows.old, metric):
                judgements.append(judge(metric, Verdict.CANNOT_TELL, detail=f"the old {NO_NUMBER}"))
                continue
            if not has_numbers(rows.new, metric):
                judgements.append(judge(metric, Verdict.WORSE, detail=f"the new {NO_NUMBER}"))
                continue
            margin = margins.get(metric, margins["other"])  # a user's task may have any score
            facts, effect = weigh(metric, rows, cell in one_training, noise, margin)
            if effect is None:
                judgements.append(judge(metric, Verdict.CANNOT_TELL, **facts))
            else:
                effects[cell, metric] = effect
                evidence[cell, metric] = facts
    for (cell, metric), (verdict, min_drop) in decide(effects, mains, margins).items():
        facts = evidence[cell, metric] | {"p": effects[cell, metric].p_worse, "min_drop": min_drop}
        judgements.append(make_judgement(by_cell[cell].records[0][0], metric, verdict, **facts))
    return [by_cell[judgement.cell].check_equal(judgement) for judgement in judgements]


def has_numbers(records: RecordsBySeed, metric: str) -> bool:
    """Checks whether every record has a finite number for this score."""
    scores = [record.scores.get(metric) for record in records.values()]
    return all(score is not None and math.isfinite(score) for score in scores)


def other_recipe(before: Record, after: Record) -> str:
    """A clause naming the fields in which recipes or row limits differ; empty if none do."""
    names = []
    for old, new in ((before.recipe, after.recipe), (before.limits, after.limits)):
        for field in fields(old):
            if getattr(old, field.name) != getattr(new, field.name):
                names.append(field.name)
    return f"the recipes differ in {phrase(names)}" if names else ""
