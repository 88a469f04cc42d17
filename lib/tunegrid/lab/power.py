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
from tunegrid.gate.bounds import get_bounds
from tunegrid.gate.judgements import Verdict
from tunegrid.gate.noise import NOISE, PERTURBED, SEEDS, Deviation, Noise, NoiseKey, cell_kind, load_noise
from tunegrid.gate.quality import decide
from tunegrid.gate.statistics import ALPHA, POWER, Array, by_training
from tunegrid.gate.thresholds import load_margins
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.report.tables import Section, text

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
        main_scores = {cell.id: cell.task.main_score for cell in STUDY.cells(QUICK_PROFILE)}
        metrics = defaultdict[str, list[str]](list)
        for cell, metric in sorted(self.noise.scores[self.kind], key=lambda key: key[1] != main_scores.get(key[0])):
            metrics[cell].append(metric)
        return dict(metrics)

    @cached_property
    def estimates(self) -> dict[NoiseKey, tuple[float, Deviation]]:
        """Every score's mean over all calibrated runs, in points, and what the calibration says of its noise."""
        groups = self.noise.scores[self.kind]
        means = {key: fmean(score for group in lists for score in group) for key, lists in groups.items()}
        candidates = {key: (mean, self.noise.estimate(self.kind, *key, mean)) for key, mean in means.items()}
        return {key: (mean, deviation) for key, (mean, deviation) in candidates.items() if deviation}

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

    def _run(self, cell_id: str, rng: np.random.Generator) -> tuple[set[str], set[str]]:
        # True deviations, as the real calibration leaves them open: a cell's is off by as much for all its scores.
        factors = {cell: sqrt(spread.df / rng.chisquare(spread.df)) for (cell, _), (_, spread) in self.estimates.items()}
        truth = {key: spread.sd * factors[key[0]] for key, (_, spread) in self.estimates.items()}
        trainings = self._scores(truth, rng)
        noise = replace(self.noise, scores={self.kind: {key: [draws] for key, draws in trainings.items()}})
        baseline_count = 1 if self.kind == PERTURBED else BASELINE_SEEDS
        old, new, rerun = (self._scores(truth, rng, number) for number in (baseline_count, 1, 1))
        for scores in (new, rerun):
            key = cell_id, self.metrics[cell_id][0]
            scores[key] = [max(scores[key][0] - self.lost * (rng.random() < self.share), 0.0)]
        main_scores = {cell: metrics[0] for cell, metrics in self.metrics.items()}
        worse_keys = self._worse(noise, main_scores, old, new)
        cells = {cell for cell, _ in worse_keys}
        if self.kind == PERTURBED:
            return cells, cells  # what differs at equal seeds is a change
        bounds = get_bounds(noise, {})
        misses, rerun_misses = ({key[0] for key, bound in bounds.items() if scores[key][0] < bound} for scores in (new, rerun))
        worse_reruns = set[NoiseKey]().union(*(self._worse(noise, {cell: main_scores[cell]}, old, rerun) for cell in cells))
        return cells | misses, {cell for cell, _ in worse_keys & worse_reruns} | (misses & rerun_misses)

    def _worse(self, noise: Noise, main_scores: Mapping[str, str], old: Scores, new: Scores) -> set[NoiseKey]:
        """The scores of these cells, judged together, that are called worse."""
        effects = {}
        for key in (key for key in new if key[0] in main_scores):
            mean = fmean(old[key])
            if deviation := noise.estimate(self.kind, *key, mean):
                error = deviation.sd * sqrt(1 + 1 / len(old[key]))
                effects[key] = by_training(mean, new[key][0], error, deviation.df, self.noise.scale(*key))
        return {key for key, (verdict, *_) in decide(effects, main_scores, self.margins).items() if verdict is Verdict.WORSE}

    def _scores(self, truth: Mapping[NoiseKey, float], rng: np.random.Generator, trainings: int | None = None) -> Scores:
        """Every score of so many trainings, in points; of as many as were calibrated, if no number is given.

        Their residuals are those of the cell's kind, or normal if rounding moved none, in the cell's own deviations.
        """
        scores: Scores = {}
        for cell, metrics in self.metrics.items():
            number = trainings or min(MOST_TRAININGS, 1 + round(self.noise.spreads[self.kind, cell, metrics[0]].df))
            shape = self.shapes.get(cell_kind(cell), rng.normal(size=(number, 1)))
            residuals = shape[rng.integers(0, len(shape), number)]
            for metric, column in zip(metrics, np.broadcast_to(residuals, (number, len(metrics))).T.tolist(), strict=True):
                key, scale = (cell, metric), self.noise.scale(cell, metric)
                scores[key] = [scale.shift(self.estimates[key][0], truth[key] * residual) for residual in column]
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
    margins, rows, unconfirmed_count = load_margins()["points"], [], 1
    for (change, (drop, share)), kind in product(CHANGES.items(), WORDS):
        if noise.scores.get(kind) and (kind == SEEDS or share == 1):
            runs = Simulation(noise=noise, margins=margins, kind=kind, lost=drop, share=share).runs(options.runs)
            alarm_count, confirmed_count = (sum(run[0] in run[i] if drop else bool(run[i]) for run in runs) for i in (1, 2))
            rows.append((change, WORDS[kind], alarm_count, confirmed_count))
            unconfirmed_count = max(unconfirmed_count, alarm_count - confirmed_count) if not drop else unconfirmed_count
    if not rows:
        refuse(parser, f"{options.noise} holds no noise; `python -m tunegrid.lab calibrate` measures it")
    frame = pd.DataFrame(rows, columns=["what", "baseline", "told", "confirmed"])
    number, misses = runs_until(SELDOM * (1 - SELDOM), unconfirmed_count / options.runs / len(STUDY_IDS))
    history = (
        f"A collapse of one seed in ten shows after {number} runs: {misses} misses of its cell that no second seed confirmed."
    )
    formats = dict.fromkeys(("told", "confirmed"), "")
    print(text([Section(heading=f"Of {options.runs} simulated runs:", frame=frame, formats=formats, sentences=[history])]))
    return 0
