"""How often is a session wrong, and what does it see? `python -m tunegrid.lab power` simulates runs, and confirms their misses.

Each run has a calibration of its own. A cell is told if its gate calls it worse or it misses a bound; at other seeds than the
baseline's it is trained once more, and counts if that training, judged by itself, does the same. Scores are drawn from the
residuals that the calibration measured. It trains nothing.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, product
from math import sqrt
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
from scipy import special

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.results.bounds import get_bounds
from tunegrid.results.judgements import Verdict
from tunegrid.results.noise import NOISE, PERTURBED, SEEDS, Deviation, Noise, NoiseKey, cell_kind, load_noise
from tunegrid.results.quality import decide
from tunegrid.results.report import Section, text
from tunegrid.results.statistics import ALPHA, POWER, Array, by_training
from tunegrid.results.thresholds import load_margins

BASELINE_SEEDS = 5
MOST_TRAININGS = 200  # of a cell in a simulated calibration: as good as any number
WORDS = {PERTURBED: "same seeds", SEEDS: "other seeds"}
SELDOM = 0.1
# Points that the main score of one cell loses, and at what share of seeds.
CHANGES = {"equal runs": (0.0, 1.0), "3 points lost": (3.0, 1.0), "30 points lost at one seed in ten": (30.0, SELDOM)}
Scores = dict[NoiseKey, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Runs, and the calibrations that judge them. All but one cell are as good as before."""

    noise: Noise  # calibrated
    margins: Mapping[str, float]  # the smallest drop that counts as a regression, by score
    kind: str  # of noise: PERTURBED, every run paired with one of its seed, or SEEDS, against a baseline of other seeds
    lost: float = 0.0  # points of the main score, in one cell of each run, another one each time
    share: float = 1.0  # of that cell's seeds, which lose them

    @cached_property
    def metrics(self) -> dict[str, list[str]]:
        """The scores of each cell, the main one first."""
        mains = {cell.id: cell.task.main_score for cell in STUDY.cells(QUICK_PROFILE)}
        metrics = defaultdict[str, list[str]](list)
        for cell, metric in sorted(self.noise.scores[self.kind], key=lambda key: key[1] != mains.get(key[0])):
            metrics[cell].append(metric)
        return dict(metrics)

    @cached_property
    def estimates(self) -> dict[NoiseKey, tuple[float, Deviation]]:
        """Every score's mean over all calibrated runs, in points, and what the calibration says of its noise."""
        groups = self.noise.scores[self.kind]
        means = {key: fmean(score for group in own for score in group) for key, own in groups.items()}
        known = {key: (mean, self.noise.estimate(self.kind, *key, mean)) for key, mean in means.items()}
        return {key: (mean, own) for key, (mean, own) in known.items() if own}

    @cached_property
    def shapes(self) -> dict[str, Array]:
        """By kind of cells, the residuals of its trainings in standard deviations: one row each, one column per score."""
        rows = defaultdict[str, list[Array]](list)
        for cell, metrics in self.metrics.items():
            if all(columns := [self.noise.residuals(self.kind, cell, metric) for metric in metrics]):
                rows[cell_kind(cell)].append(np.column_stack(columns))
        return {kind: np.concatenate(parts) for kind, parts in rows.items()}

    def runs(self, number: int) -> list[tuple[str, set[str], set[str]]]:
        """Of so many runs each: the cell that lost points, the cells that are told, and those that a second seed confirms."""
        rng, cells = np.random.default_rng(0), list(self.metrics)
        return [(cell, *self._run(cell, rng)) for cell in (cells[i % len(cells)] for i in range(number))]

    def _run(self, lost: str, rng: np.random.Generator) -> tuple[set[str], set[str]]:
        # True deviations, as the real calibration leaves them open: a cell's is off by as much for all its scores.
        factors = {cell: sqrt(own.df / rng.chisquare(own.df)) for (cell, _), (_, own) in self.estimates.items()}
        truth = {key: own.sd * factors[key[0]] for key, (_, own) in self.estimates.items()}
        trainings = self._scores(truth, rng)
        calibrated = replace(self.noise, scores={self.kind: {key: [own] for key, own in trainings.items()}})
        before = 1 if self.kind == PERTURBED else BASELINE_SEEDS
        old, new, again = (self._scores(truth, rng, number) for number in (before, 1, 1))
        for own in (new, again):
            key = lost, self.metrics[lost][0]
            own[key] = [max(own[key][0] - self.lost * (rng.random() < self.share), 0.0)]
        mains = {cell: metrics[0] for cell, metrics in self.metrics.items()}
        worse = self._worse(calibrated, mains, old, new)
        told = {cell for cell, _ in worse}
        if self.kind == PERTURBED:
            return told, told  # what differs at equal seeds is a change
        bounds = get_bounds(calibrated, {})
        missed, missed_again = ({key[0] for key, least in bounds.items() if own[key][0] < least} for own in (new, again))
        worse_again = set[NoiseKey]().union(*(self._worse(calibrated, {cell: mains[cell]}, old, again) for cell in told))
        return told | missed, {cell for cell, _ in worse & worse_again} | (missed & missed_again)

    def _worse(self, calibrated: Noise, mains: Mapping[str, str], old: Scores, new: Scores) -> set[NoiseKey]:
        """The scores of these cells, judged together, that are called worse."""
        effects = {}
        for key in (key for key in new if key[0] in mains):
            before = fmean(old[key])
            if own := calibrated.estimate(self.kind, *key, before):
                error = own.sd * sqrt(1 + 1 / len(old[key]))
                effects[key] = by_training(before, new[key][0], error, own.df, self.noise.scale(*key))
        return {key for key, (verdict, *_) in decide(effects, mains, self.margins).items() if verdict is Verdict.WORSE}

    def _scores(self, truth: Mapping[NoiseKey, float], rng: np.random.Generator, trainings: int | None = None) -> Scores:
        """Every score of so many trainings, in points; of as many as were calibrated, if no number is given.

        Their residuals are those of the cell's kind, or normal if rounding moved none, in the cell's own deviations.
        """
        scores: Scores = {}
        for cell, metrics in self.metrics.items():
            number = trainings or min(MOST_TRAININGS, 1 + round(self.noise.spreads[self.kind, cell, metrics[0]].df))
            shape = self.shapes.get(cell_kind(cell), rng.normal(size=(number, 1)))
            drawn = shape[rng.integers(0, len(shape), number)]
            for metric, column in zip(metrics, np.broadcast_to(drawn, (number, len(metrics))).T.tolist(), strict=True):
                key, scale = (cell, metric), self.noise.scale(cell, metric)
                scores[key] = [scale.shift(self.estimates[key][0], truth[key] * one) for one in column]
        return scores


def runs_until(chance: float, healthy: float) -> tuple[int, int]:
    """In how many runs misses of a cell, with this chance each, are told from a healthy one's, and how many misses tell.

    They do so four times in five; in all healthy cells of the study together as many are seen one time in twenty at most.
    """
    alpha, misses = ALPHA / len(STUDY_IDS), 1
    for runs in count(1):
        while special.bdtrc(misses - 1, runs, healthy) >= alpha:
            misses += 1
        if misses <= runs and special.bdtrc(misses - 1, runs, chance) >= POWER:
            return runs, misses
    raise AssertionError("some number of runs tells any two chances apart")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab power", description=__doc__)
    parser.add_argument("--noise", type=Path, default=NOISE, metavar="FILE", help="calibrated noise (default: the suite's)")
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="simulated runs a figure (default 1000)")
    options = parser.parse_args(arguments)
    try:
        noise = load_noise(options.noise)
    except InputError as error:
        refuse(parser, error)
    margins, rows, unconfirmed = load_margins()["points"], [], 1
    for (what, (lost, share)), kind in product(CHANGES.items(), WORDS):
        if noise.scores.get(kind) and (kind == SEEDS or share == 1):
            runs = Simulation(noise=noise, margins=margins, kind=kind, lost=lost, share=share).runs(options.runs)
            told, confirmed = (sum(run[0] in run[i] if lost else bool(run[i]) for run in runs) for i in (1, 2))
            rows.append((what, WORDS[kind], told, confirmed))
            unconfirmed = max(unconfirmed, told - confirmed) if not lost else unconfirmed
    if not rows:
        refuse(parser, f"{options.noise} holds no noise; `python -m tunegrid.lab calibrate` measures it")
    frame = pd.DataFrame(rows, columns=["what", "baseline", "told", "confirmed"])
    number, misses = runs_until(SELDOM * (1 - SELDOM), unconfirmed / options.runs / len(STUDY_IDS))
    history = (
        f"A collapse of one seed in ten shows after {number} runs: {misses} misses of its cell that no second seed confirmed."
    )
    formats = dict.fromkeys(("told", "confirmed"), "")
    print(text([Section(heading=f"Of {options.runs} simulated runs:", frame=frame, formats=formats, sentences=[history])]))
    return 0
