"""Estimate how often a session raises false alarms, and how often it detects real losses.

`python -m tunegrid.lab power` simulates runs from the residuals that the calibration measured; it
trains nothing. Each run is judged by its own simulated calibration. In the table, a cell is "told"
if the gate calls it worse. If the baseline has other seeds, a cell is also told if it misses a
bound, and it is "confirmed" if a second simulated training run, judged on its own, fails in the
same way.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from tunegrid.errors import InputError
from tunegrid.gate.bounds import get_bounds
from tunegrid.gate.judgements import Verdict
from tunegrid.gate.noise import (
    NOISE_FILE,
    PERTURBED,
    SEEDS,
    Deviation,
    Noise,
    NoiseKey,
    cell_kind,
    load_noise,
)
from tunegrid.gate.quality import decide
from tunegrid.gate.statistics import ALPHA, POWER, Array, by_training
from tunegrid.gate.thresholds import load_margins
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.report.tables import Section, text

BASELINE_SEEDS = 5
# Maximum number of training runs per cell in a simulated calibration; more would change nothing
MOST_TRAININGS = 200
# by the kind of noise between baseline and run
BASELINES = {PERTURBED: "same seeds", SEEDS: "other seeds"}
SELDOM = 0.1
# Points that one cell's main score loses, and the share of seeds with this loss
CHANGES = {
    "equal runs": (0.0, 1.0),
    "3 points lost": (3.0, 1.0),
    "30 points lost at one seed in ten": (30.0, SELDOM),
}
Draws = dict[NoiseKey, Sequence[float]]


class SimulatedRun(NamedTuple):
    """The cells of a simulated run that the session calls worse or below a bound."""

    changed_cell: str  # the cell that loses points
    called: set[str]
    confirmed: set[str]  # also called with a second seed


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Simulates runs and the calibrations that judge them; one cell per run may lose points."""

    noise: Noise  # calibrated noise
    margins: Mapping[str, float]  # smallest drop that counts as a regression, by score
    # The kind of noise: PERTURBED compares each run with a run of the same seed, SEEDS with runs of
    # other seeds
    kind: str
    lost: float = 0.0  # points lost by the main score of one cell per run, with cells taking turns
    share: float = 1.0  # share of that cell's seeds with this loss

    @cached_property
    def metrics(self) -> dict[str, list[str]]:
        """The names of each cell's scores, main score first."""
        main_scores = {cell.id: cell.task.main_score for cell in STUDY.cells(QUICK_PROFILE)}
        keys = sorted(
            self.noise.scores[self.kind],
            key=lambda key: key[1] != main_scores.get(key[0]),
        )
        metrics = defaultdict[str, list[str]](list)
        for cell, metric in keys:
            metrics[cell].append(metric)
        return dict(metrics)

    @cached_property
    def estimates(self) -> dict[NoiseKey, tuple[float, Deviation]]:
        """Each score's mean over calibrated runs, in points, and its deviation.

        Scores without a known deviation are omitted.
        """
        estimates = {}
        for key, groups in self.noise.scores[self.kind].items():
            mean = fmean(chain.from_iterable(groups))
            deviation = self.noise.estimate(self.kind, *key, mean)
            if deviation:
                estimates[key] = mean, deviation
        return estimates

    @cached_property
    def shapes(self) -> dict[str, Array]:
        """Residuals by kind of cell, in standard deviations; shape (training runs, scores)."""
        rows = defaultdict[str, list[Array]](list)
        for cell, metrics in self.metrics.items():
            columns = [self.noise.residuals(self.kind, cell, metric) for metric in metrics]
            if all(columns):
                rows[cell_kind(cell)].append(np.column_stack(columns))
        return {kind: np.concatenate(arrays) for kind, arrays in rows.items()}

    def runs(self, number: int) -> list[SimulatedRun]:
        """Simulate `number` runs; the cells take turns losing points."""
        rng = np.random.default_rng(0)
        cells = list(self.metrics)
        return [self._run(cells[i % len(cells)], rng) for i in range(number)]

    def _run(self, changed_cell: str, rng: np.random.Generator) -> SimulatedRun:
        # A real calibration only estimates the true deviations. All scores of a cell share one
        # error factor.
        factors = {}
        for (cell, _), (_, spread) in self.estimates.items():
            factors[cell] = sqrt(spread.df / rng.chisquare(spread.df))
        truth = {key: spread.sd * factors[key[0]] for key, (_, spread) in self.estimates.items()}
        trainings = self._scores(truth, rng)
        groups = {key: [draws] for key, draws in trainings.items()}
        noise = replace(self.noise, scores={self.kind: groups})
        old = self._scores(truth, rng, 1 if self.kind == PERTURBED else BASELINE_SEEDS)
        new = self._scores(truth, rng, 1)
        rerun = self._scores(truth, rng, 1)
        changed_key = changed_cell, self.metrics[changed_cell][0]
        for scores in (new, rerun):
            loss = self.lost * (rng.random() < self.share)
            scores[changed_key] = [max(scores[changed_key][0] - loss, 0.0)]
        main_scores = {cell: metrics[0] for cell, metrics in self.metrics.items()}
        worse_keys = self._worse(noise, main_scores, old, new)
        worse_cells = {cell for cell, _ in worse_keys}
        if self.kind == PERTURBED:
            # With equal seeds, a difference is a real change.
            return SimulatedRun(changed_cell, worse_cells, worse_cells)
        confirmed_keys = set[NoiseKey]()
        for cell in worse_cells:
            confirmed_keys |= worse_keys & self._worse(noise, {cell: main_scores[cell]}, old, rerun)
        misses = set()
        rerun_misses = set()
        for key, bound in get_bounds(noise, {}).items():
            if new[key][0] < bound:
                misses.add(key[0])
            if rerun[key][0] < bound:
                rerun_misses.add(key[0])
        confirmed_cells = {cell for cell, _ in confirmed_keys} | (misses & rerun_misses)
        return SimulatedRun(changed_cell, worse_cells | misses, confirmed_cells)

    def _worse(
        self,
        noise: Noise,
        main_scores: Mapping[str, str],
        old: Draws,
        new: Draws,
    ) -> set[NoiseKey]:
        """Judge the cells of `main_scores` together and return the keys of their worse scores."""
        effects = {}
        for key in new:
            if key[0] not in main_scores:
                continue
            mean = fmean(old[key])
            deviation = noise.estimate(self.kind, *key, mean)
            if deviation:
                error = deviation.sd * sqrt(1 + 1 / len(old[key]))
                scale = self.noise.scale(*key)
                effects[key] = by_training(mean, new[key][0], error, deviation.df, scale)
        decisions = decide(effects, main_scores, self.margins)
        return {key for key, (verdict, *_) in decisions.items() if verdict is Verdict.WORSE}

    def _scores(
        self,
        truth: Mapping[NoiseKey, float],
        rng: np.random.Generator,
        trainings: int | None = None,
    ) -> Draws:
        """Draw every score, in points, for `trainings` training runs.

        By default, there is one more run than the main score has degrees of freedom, but at most
        `MOST_TRAININGS`. Residuals are drawn from the cell's kind, or from a normal distribution if
        its kind has none, and are multiplied by the deviations in `truth`.
        """
        scores: Draws = {}
        for cell, metrics in self.metrics.items():
            df = self.noise.spreads[self.kind, cell, metrics[0]].df
            number = trainings or min(MOST_TRAININGS, 1 + round(df))
            shape = self.shapes.get(cell_kind(cell), rng.normal(size=(number, 1)))
            residuals = shape[rng.integers(0, len(shape), number)]
            columns = np.broadcast_to(residuals, (number, len(metrics))).T.tolist()
            for metric, column in zip(metrics, columns, strict=True):
                key = cell, metric
                mean, _ = self.estimates[key]
                scale = self.noise.scale(cell, metric)
                scores[key] = [scale.shift(mean, truth[key] * residual) for residual in column]
        return scores


def runs_until(chance: float, healthy: float) -> tuple[int, int]:
    """The numbers of runs and of unconfirmed misses that reveal an unhealthy cell.

    An unconfirmed miss in one run has probability `chance` for the unhealthy cell, and `healthy`
    for a healthy one. The unhealthy cell reaches the number of misses with probability `POWER` or
    more. With probability `ALPHA` or less, at least one of the study's healthy cells reaches it.
    """
    alpha = ALPHA / len(STUDY_IDS)
    misses = 1
    for runs in count(1):
        while special.bdtrc(misses - 1, runs, healthy) >= alpha:
            misses += 1
        if misses <= runs and special.bdtrc(misses - 1, runs, chance) >= POWER:
            return runs, misses
    raise AssertionError("some number of runs tells any two chances apart")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 0."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab power", description=__doc__)
    add = parser.add_argument
    add(
        "--noise",
        type=Path,
        default=NOISE_FILE,
        metavar="FILE",
        help="calibrated noise (default: the suite's)",
    )
    add(
        "--runs",
        type=int,
        default=1000,
        metavar="N",
        help="simulated runs a figure (default 1000)",
    )
    options = parser.parse_args(arguments)
    noise = load_noise(options.noise)
    margins = load_margins()["points"]
    rows = []
    unconfirmed_count = 1
    for change, (drop, share) in CHANGES.items():
        for kind, baseline in BASELINES.items():
            if not noise.scores.get(kind) or (kind != SEEDS and share != 1):
                continue
            simulation = Simulation(
                noise=noise,
                margins=margins,
                kind=kind,
                lost=drop,
                share=share,
            )
            called_count = confirmed_count = 0
            for run in simulation.runs(options.runs):
                cells = {run.changed_cell} if drop else simulation.metrics.keys()
                called_count += not run.called.isdisjoint(cells)
                confirmed_count += not run.confirmed.isdisjoint(cells)
            rows.append((change, baseline, called_count, confirmed_count))
            if not drop:
                unconfirmed_count = max(unconfirmed_count, called_count - confirmed_count)
    if not rows:
        hint = "`python -m tunegrid.lab calibrate` measures it"
        raise InputError(f"{options.noise} holds no noise; {hint}")
    frame = pd.DataFrame(rows, columns=["what", "baseline", "told", "confirmed"])
    healthy_chance = unconfirmed_count / options.runs / len(STUDY_IDS)
    number, misses = runs_until(SELDOM * (1 - SELDOM), healthy_chance)
    section = Section(
        heading=f"Of {options.runs} simulated runs:",
        frame=frame,
        formats=dict.fromkeys(("told", "confirmed"), ""),
        sentences=[
            f"A collapse of one seed in ten shows after {number} runs: "
            f"{misses} misses of its cell that no second seed confirmed."
        ],
    )
    print(text([section]))
    return 0
