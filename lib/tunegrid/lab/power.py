"""How often is a session wrong, and what does it see? `python -m tunegrid.lab power` simulates runs, and confirms their misses.

Each run has a calibration of its own. A cell is told if its gate calls it worse or it misses a bound; at other seeds than the
baseline's it is trained once more, and counts if it is told again. Scores are drawn from the residuals that the calibration
measured. It trains nothing.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from tunegrid.results.bounds import bounds_of
from tunegrid.results.judgements import Verdict
from tunegrid.results.noise import (
    NOISE,
    PERTURBED,
    SEEDS,
    Deviation,
    Noise,
    NoiseKey,
    Scale,
    kind_of,
    load_noise,
    placed,
    scale_of,
    standardised,
    task_of,
)  # fmt: skip
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
    seeds: int = 1  # of the run to judge
    lost: float = 0.0  # points of the main score, in one cell of each run, another one each time
    share: float = 1.0  # of that cell's seeds, which lose them

    @cached_property
    def means(self) -> dict[NoiseKey, float]:
        """Every score's mean over all calibrated runs, in points."""
        return {key: fmean(one for group in groups for one in group) for key, groups in self.noise.scores[self.kind].items()}

    @cached_property
    def scales(self) -> dict[NoiseKey, Scale]:
        """Every score's scale."""
        return {(cell, metric): scale_of(self.noise.rows[task_of(cell)], metric) for cell, metric in self.means}

    @cached_property
    def estimates(self) -> dict[NoiseKey, Deviation]:
        """What the calibration says of every score."""
        known = {key: self.noise.estimate(self.kind, *key, mean) for key, mean in self.means.items()}
        return {key: own for key, own in known.items() if own}

    @cached_property
    def mains(self) -> dict[str, str]:
        """The main score of each cell."""
        mains = {cell.id: cell.task.main_score for cell in STUDY.cells(QUICK_PROFILE)}
        return {cell: metric for cell, metric in self.estimates if mains.get(cell) == metric}

    @cached_property
    def shapes(self) -> dict[str, Array]:
        """By kind of cells, the residuals of its trainings in standard deviations: one row each, one column per score."""
        rows = defaultdict(list)
        for cell in self.mains:
            groups = {metric: own for (name, metric), own in self.noise.scores[self.kind].items() if name == cell}
            columns = [standardised(placed(own, self.noise.rows, cell, metric)) for metric, own in groups.items()]
            if all(columns):
                rows[kind_of(cell)].append(np.column_stack(columns))
        return {kind: np.concatenate(parts) for kind, parts in rows.items()}

    def runs(self, number: int) -> list[tuple[str, set[str], set[str]]]:
        """Of so many runs each: the cell that lost points, the cells that are told, and those that a second seed confirms."""
        rng, cells = np.random.default_rng(0), list(self.mains)
        return [(cell, *self._run(cell, rng)) for cell in (cells[i % len(cells)] for i in range(number))]

    def _run(self, lost: str, rng: np.random.Generator) -> tuple[set[str], set[str]]:
        # True deviations, as the real calibration leaves them open: a cell's is off by as much for all its scores.
        factors = {cell: sqrt(own.df / rng.chisquare(own.df)) for (cell, _), own in self.estimates.items()}
        truth = {key: own.sd * factors[key[0]] for key, own in self.estimates.items()}
        trainings = {key: min(MOST_TRAININGS, 1 + round(self.noise.measured[self.kind][key].df)) for key in truth}
        scores = {key: [own] for key, own in self._scores(truth, trainings, rng).items()}
        calibrated = Noise.of_scores(self.noise.profile, self.noise.rows, {self.kind: scores})
        before = self.seeds if self.kind == PERTURBED else BASELINE_SEEDS
        old, new, again = (self._scores(truth, dict.fromkeys(truth, n), rng) for n in (before, self.seeds, 1))
        for own in (new, again):
            key = lost, self.mains[lost]
            own[key] = [max(one - self.lost * (rng.random() < self.share), 0.0) for one in own[key]]
        bounds = bounds_of(calibrated, {}) if self.kind == SEEDS else {}
        told = self._told(calibrated, bounds, old, new)
        if self.kind == PERTURBED:
            return told, told  # what differs at equal seeds is a change
        seconds = {cell: new | {key: again[key] for key in again if key[0] == cell} for cell in told}
        return told, {cell for cell, own in seconds.items() if cell in self._told(calibrated, bounds, old, own)}

    def _told(self, calibrated: Noise, bounds: Mapping[NoiseKey, float], old: Scores, new: Scores) -> set[str]:
        """The cells that are called worse or have a seed below a bound."""
        effects = {}
        for key, scores in new.items():
            before = fmean(old[key])
            if own := calibrated.estimate(self.kind, *key, before):
                error = own.sd * sqrt(1 / len(scores) + 1 / len(old[key]))
                effects[key] = by_training(before, fmean(scores), error, own.df, self.scales[key])
        worse = {key[0] for key, (verdict, *_) in decide(effects, self.mains, self.margins).items() if verdict is Verdict.WORSE}
        return worse | {key[0] for key, minimum in bounds.items() if min(new[key]) < minimum}

    def _scores(self, truth: Mapping[NoiseKey, float], counts: Mapping[NoiseKey, int], rng: np.random.Generator) -> Scores:
        """Every score of so many trainings, in points: measured residuals of the cell's kind, in its own deviations.

        They are normal if rounding moved no score of the kind.
        """
        scores: Scores = {}
        for cell, main in self.mains.items():
            keys, shape, number = [key for key in truth if key[0] == cell], self.shapes.get(kind_of(cell)), counts[cell, main]
            drawn = rng.normal(size=(number, 1)) if shape is None else shape[rng.integers(0, len(shape), number)]
            for key, column in zip(keys, np.broadcast_to(drawn, (number, len(keys))).T.tolist(), strict=True):
                scores[key] = [self.scales[key].moved(self.means[key], truth[key] * one) for one in column]
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
    kinds = [kind for kind, measured in noise.measured.items() if measured]
    if not kinds:
        refuse(parser, f"{options.noise} holds no noise; `python -m tunegrid.lab calibrate` measures it")
    margins, rows, unconfirmed = load_margins()["points"], [], 1
    for (what, (lost, share)), kind, seeds in product(CHANGES.items(), kinds, (1, 3)):
        if (seeds > 1 and lost) or (kind == PERTURBED and share < 1):
            continue
        runs = Simulation(noise=noise, margins=margins, kind=kind, seeds=seeds, lost=lost, share=share).runs(options.runs)
        told, confirmed = (sum(run[0] in run[i] if lost else bool(run[i]) for run in runs) for i in (1, 2))
        rows.append((what, WORDS[kind], seeds, told, confirmed))
        unconfirmed = max(unconfirmed, told - confirmed) if not lost else unconfirmed
    frame = pd.DataFrame(rows, columns=["what", "against the baseline", "seeds", "told", "confirmed"])
    number, misses = runs_until(SELDOM * (1 - SELDOM), unconfirmed / options.runs / len(STUDY_IDS))
    history = f"One seed in ten that collapses shows after {number} runs: {misses} misses of its cell that none confirmed."
    formats = dict.fromkeys(("seeds", "told", "confirmed"), "")
    print(text([Section(heading=f"Of {options.runs} simulated runs", frame=frame, formats=formats, sentences=[history])]))
    return 0
