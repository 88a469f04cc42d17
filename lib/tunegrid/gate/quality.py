"""Judges whether scores got worse: one judgement per bounded score of two runs.

The difference of mean scores is held to the training noise that applies (`tunegrid.gate.noise`), by a t-test on the scale of
that noise, with or without points by row. If no noise was calibrated, the seeds of the two runs tell their own. With one seed
on each side, single rows tell the noise if both runs are one training but for rounding; if they are not, nothing can be told.
A whole run of equal quality is called worse with a chance of at most 5 %: main scores get most of it, all others the rest.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tunegrid.errors import InputError
from tunegrid.gate.judgements import Judgement, RecordsBySeed, Verdict, make_judgement
from tunegrid.gate.noise import PERTURBED, SEEDS, Deviation, Noise, NoiseKey, deviation, make_scale, mean_score
from tunegrid.gate.statistics import ALPHA, Array, Effect, by_training, holm, row_deviation
from tunegrid.record import Record
from tunegrid.runs.examples import read
from tunegrid.words import count

MAIN_ALPHA, OTHER_ALPHA = 0.9 * ALPHA, 0.1 * ALPHA
Points = Mapping[str, Sequence[float]]  # of each row, by metric; and its texts
OTHER_RECIPE = "other recipes or limits"
MORE_SEEDS = "noise was not calibrated, and one seed on each side does not show it: give both runs --seeds 0-4"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A cell's runs and their points by row, paired: a run to judge with the baseline's of its seed, else with any of it."""

    old: RecordsBySeed
    new: RecordsBySeed
    old_path: Path | None
    new_path: Path | None

    @property
    def cell(self) -> str:
        """Whose runs they are."""
        return self.records[0][0].cell

    @cached_property
    def records(self) -> list[tuple[Record, Record]]:
        """The pairs of records, those of one seed first."""
        others = list(self.old.values())
        pairs = [(self.old.get(seed, others[i % len(others)]), record) for i, (seed, record) in enumerate(self.new.items())]
        return sorted(pairs, key=lambda pair: pair[0].seeds.seed != pair[1].seeds.seed)

    @property
    def has_scores(self) -> bool:
        """True if any of these records was scored."""
        return any(old.scores or new.scores for old, new in self.records)

    @property
    def has_other_recipe(self) -> bool:
        """True if a record was trained by another recipe than any of the baseline's."""
        return any(has_other_recipe(*pair) for pair in product(self.old.values(), self.new.values()))

    @cached_property
    def points(self) -> list[tuple[Points, Points]]:
        """The pairs of points by row; empty if any is missing. Raises InputError if two scored different test rows."""
        for before, after in self.records:
            check_rows(before, after)
        examples = [(read(before, self.old_path), read(after, self.new_path)) for before, after in self.records]
        pairs = [(old, new) for old, new in examples if old is not None and new is not None]
        return pairs if len(pairs) == len(examples) else []

    def gains(self, metric: str) -> list[Array]:
        """New minus old points of each row, by pair; of macro F1, the hits' points. Empty if there are no points by row."""
        name = "accuracy" if metric == "f1_macro" else metric
        has_points = all(name in points for pair in self.points for points in pair)
        return [np.asarray(new[name], float) - np.asarray(old[name], float) for old, new in self.points] if has_points else []

    def check_equal(self, judgement: Judgement) -> Judgement:
        """The judgement on a score; *same* if it is equal to the last digit in each pair, and no row's points are others."""
        metric = judgement.quantity
        if judgement.verdict is Verdict.NOT_COMPARABLE:
            return judgement
        scores = [[record.scores.get(metric) for record in pair] for pair in self.records]
        files = [[one.examples and one.examples.file for one in pair] for pair in self.records]
        if any(before is None or before != after for before, after in scores):
            return judgement
        gains, same_files = self.gains(metric), all(before and before == after for before, after in files)
        if not same_files and (not gains or any(map(np.any, gains))):
            return judgement
        score = mean_score([record for record, _ in self.records], metric)
        equal: dict[str, Any] = {"before": score, "after": score, "effect": 0.0, "low": 0.0, "high": 0.0}
        detail = "equal to the last digit, and no row lost or gained points"
        return replace(judgement, verdict=Verdict.SAME, **equal, detail=detail)


def check_rows(before: Record, after: Record) -> None:
    """Raises InputError if two records were scored on different test rows, or one on none."""
    for record in (before, after):
        if record.data and not record.data.rows["test"]:
            raise InputError(f"{record.cell}: a run scored it on 0 test rows; leave that run out")
    if before.examples and after.examples and before.examples.rows_hash != after.examples.rows_hash:
        hashes = f"{before.examples.rows_hash} and {after.examples.rows_hash}"
        raise InputError(f"{before.cell}: the two runs scored different test rows ({hashes}) and cannot be paired")


def weigh(metric: str, rows: Rows, one_training: bool, noise: Noise, margin: float) -> tuple[dict[str, Any], Effect | None]:
    """The evidence on a score's change, and its effect by the narrowest noise that is known; no effect if none is."""
    gains, new, every = rows.gains(metric), list(rows.new.values()), list(rows.old.values())
    data = every[0].data
    test_rows = len(gains[0]) if gains else data.rows["test"] if data else 1
    scale = make_scale(test_rows, metric)
    peers = [rows.old[seed] for seed in rows.new] if one_training else every
    words, old, spread = "of one seed, perturbed", peers, noise.find(PERTURBED, peers[0], metric) if one_training else None
    if not spread:
        words, old, spread = "between seeds", every, noise.find(SEEDS, every[0], metric)
    if not spread:
        scores = [[scale.position(record.scores[metric] or 0) for record in records] for records in (every, new)]
        words, spread = "between these seeds", deviation(scores)
    if not spread:
        words, old = "of rows alone", peers
    before, after = mean_score(old, metric), mean_score(new, metric)
    if not spread and one_training and gains:
        sd = float(gains[0].std() / (2 * len(gains[0])) ** 0.5)
        spread = Deviation(sd=sd * scale.per_point(before), df=math.inf)
    means = {"before": before, "after": after, "effect": after - before}
    if not spread:
        return means | {"detail": f"{'no points per row to test; ' * one_training}{MORE_SEEDS}"}, None
    # Points by row, if they are at hand, widen a noise that is too small.
    by_row = row_deviation(gains) * scale.per_point(before) if gains else 0.0
    sd = max(spread.sd, scale.resolution(before), by_row)
    effect = by_training(before, after, sd * math.sqrt(1 / len(old) + 1 / len(new)), spread.df, scale)
    total = f"{len(new)} x {test_rows}" if len(new) > 1 else test_rows
    losses, wins = (sum(int((sign * gain > 0).sum()) for gain in gains) for sign in (-1, 1))
    changes = f"{count(losses, 'row')} lost, {wins} gained of {total}"
    if not gains:
        changes = "from scores alone: "
        changes += "this metric scores no single rows" if rows.points else "no rows are available"
    margin_text = f"{margin:.1f}" if round(margin, 1) == margin else f"{margin:g}"
    detail = f"{changes}; noise {words}: error {effect.error:.2f}; margin {margin_text}"
    numbers = {"low": effect.low, "high": effect.high, "error": effect.error, "margin": margin, "seeds": len(new)}
    return means | numbers | {"detail": detail}, effect


def decide(
    effects: Mapping[NoiseKey, Effect], mains: Mapping[str, str], margins: Mapping[str, float]
) -> dict[NoiseKey, tuple[Verdict, float]]:
    """The verdicts on a run's effects, each with the smallest drop that would be called worse.

    Verdicts rest on p-values that are adjusted over the run's cells (Holm 1979).
    """
    decisions: dict[NoiseKey, tuple[Verdict, float]] = {}
    for is_main, alpha in ((True, MAIN_ALPHA), (False, OTHER_ALPHA)):
        family = {key: one for key, one in effects.items() if (mains[key[0]] == key[1]) == is_main}
        worse = holm({key: effect.p_worse for key, effect in family.items()})
        better = holm({key: effect.p_better for key, effect in family.items()})
        for key, effect in family.items():
            margin = margins.get(key[1], margins["other"])
            verdict = effect_verdict(effect, worse[key], better[key], margin, alpha)
            decisions[key] = verdict, effect.detectable_drop(alpha / len(family), margin)
    return decisions


def effect_verdict(effect: Effect, p_worse: float, p_better: float, margin: float, alpha: float = MAIN_ALPHA) -> Verdict:
    """The verdict by p-values that are adjusted. A change counts if it is significant, of at least the margin, and no 0.000."""
    if p_worse < alpha and effect.points <= -margin:
        return Verdict.WORSE
    if p_better < alpha and effect.points >= margin and round(effect.points, 3):
        return Verdict.BETTER
    return Verdict.SAME if effect.low > -margin else Verdict.CANNOT_TELL


def assess(cells: Sequence[Rows], one_training: Collection[str], margins: Mapping[str, float], noise: Noise) -> list[Judgement]:
    """A judgement on each bounded score of cells that trained to their ends.

    Cells of `one_training` differ by rounding. Scores of another recipe are not compared.
    """
    by_cell = {rows.cell: rows for rows in cells if rows.has_scores}
    mains = {cell: rows.records[0][0].main_score for cell, rows in by_cell.items()}
    effects: dict[NoiseKey, Effect] = {}
    evidence: dict[NoiseKey, dict[str, Any]] = {}
    judgements = []
    for cell, rows in by_cell.items():
        first = rows.records[0][0]
        judge = partial(make_judgement, first)
        for metric in first.bounded_scores:
            if rows.has_other_recipe:
                judgements.append(judge(metric, Verdict.NOT_COMPARABLE, detail=OTHER_RECIPE))
                continue
            if not has_numbers(rows.old, metric):
                detail = "the old score is not a number"
                judgements.append(judge(metric, Verdict.CANNOT_TELL, detail=detail))
                continue
            if not has_numbers(rows.new, metric):
                detail = "the new score is not a number"
                judgements.append(judge(metric, Verdict.WORSE, detail=detail))
                continue
            margin = margins.get(metric, margins["other"])  # a user's task may hold any score
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
    """Checks that every record has a finite number as this score."""
    scores = [record.scores.get(metric) for record in records.values()]
    return all(score is not None and math.isfinite(score) for score in scores)


def has_other_recipe(before: Record, after: Record) -> bool:
    """True if two records have other recipes or other limits of rows."""
    return before.recipe != after.recipe or before.limits != after.limits
