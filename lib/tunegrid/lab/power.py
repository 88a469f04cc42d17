"""How often is the gate wrong? `python -m tunegrid.lab power` simulates runs of equal quality and counts those called worse.

Each has a calibration of its own; there are runs of the baseline's seeds, and of other seeds. Scores are drawn from the
residuals that the calibration measured. It trains nothing.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import stdev

import numpy as np

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.results.judgements import Verdict
from tunegrid.results.noise import NOISE, PERTURBED, SEEDS, Deviation, Groups, Noise, NoiseKey, deviation, kind_of, load_noise
from tunegrid.results.quality import decide
from tunegrid.results.statistics import Array, by_training
from tunegrid.results.thresholds import load_margins

COMMON = 0.9  # correlation of one cell's normal scores: they rest on the same rows
BASELINE_SEEDS = 5
MOST_TRAININGS = 200  # of a cell in a simulated calibration: as good as any number
WORDS = {PERTURBED: "same seeds", SEEDS: "other seeds"}


def estimates(noise: Noise, kind: str) -> dict[NoiseKey, Deviation]:
    """Deviations by cell and score, as the gate takes them."""
    return {key: own for key in noise.measured[kind] if (own := noise.estimate(kind, *key))}


def standardised(groups: Groups) -> Array:
    """Residuals with a variance of 1: a mean of n takes 1 / n of it, which is given back. Empty if nothing differs."""
    own = deviation(groups)
    if not own or not own.sd:
        return np.array([])
    several = [np.asarray(group, float) for group in groups if len(group) > 1]
    return np.concatenate([(group - group.mean()) / own.sd / sqrt(1 - 1 / len(group)) for group in several])


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Runs of equal quality, and the calibrations that judge them."""

    noise: Noise  # calibrated
    margins: Mapping[str, float]  # the smallest drop that counts as a regression, by score
    kind: str  # of noise: PERTURBED, every run paired with one of its seed, or SEEDS, against a baseline of other seeds
    seeds: int = 1  # of the run to judge

    @cached_property
    def estimates(self) -> dict[NoiseKey, Deviation]:
        """What the calibration says of every score."""
        return estimates(self.noise, self.kind)

    @cached_property
    def metrics(self) -> dict[str, list[str]]:
        """The scores of each cell."""
        metrics: dict[str, list[str]] = defaultdict(list)
        for cell, metric in self.estimates:
            metrics[cell].append(metric)
        return dict(metrics)

    @cached_property
    def shapes(self) -> dict[str, Array]:
        """By kind of cells, the residuals of its trainings in standard deviations: one row each, one column per score."""
        rows = defaultdict(list)
        for cell, metrics in self.metrics.items():
            columns = [standardised(self.noise.scores[self.kind][cell, metric]) for metric in metrics]
            if all(len(column) for column in columns):
                rows[kind_of(cell)].append(np.column_stack(columns))
        return {kind: np.concatenate(parts) for kind, parts in rows.items()}

    def worse_cells(self, runs: int) -> list[set[str]]:
        """The cells that each simulated run's gate calls worse."""
        rng, mains = np.random.default_rng(0), {cell.id: cell.task.main_score for cell in STUDY.cells(QUICK_PROFILE)}
        mains = {cell: metric for cell, metric in self.estimates if mains.get(cell) == metric}
        return [self._judged(mains, rng) for _ in range(runs)]

    def _judged(self, mains: Mapping[str, str], rng: np.random.Generator) -> set[str]:
        # True deviations, as the real calibration leaves them open: a cell's is off by as much for all its scores.
        factors = {key: sqrt(own.df / rng.chisquare(own.df)) for key, own in self.estimates.items()}
        truth = {(cell, name): own.sd * factors[cell, self.metrics[cell][0]] for (cell, name), own in self.estimates.items()}
        noise, gaps, effects = self._calibrated(truth, rng), self._gaps(truth, rng), {}
        before = self.seeds if self.kind == PERTURBED else BASELINE_SEEDS
        error = sqrt(1 / self.seeds + 1 / before)  # of the difference of means, for a deviation of 1
        for key, own in noise.items():
            effects[key] = by_training(gaps[key], own.sd * error, own.df, rows=1)
        decisions = decide(effects, mains, self.margins)
        return {cell for (cell, _), (verdict, *_) in decisions.items() if verdict is Verdict.WORSE}

    def _draws(self, truth: Mapping[NoiseKey, float], cell: str, count: int, rng: np.random.Generator) -> Array:
        """Scores of so many trainings, a row each, around 0: measured residuals of the cell's kind, in its own deviations.

        They are normal if rounding moved no score of the kind.
        """
        spread = np.array([truth[cell, metric] for metric in self.metrics[cell]])
        shape = self.shapes.get(kind_of(cell))
        if shape is None:
            common, own = rng.normal(size=(count, 1)), rng.normal(size=(count, len(spread)))
            normal: Array = (sqrt(COMMON) * common + sqrt(1 - COMMON) * own) * spread
            return normal
        drawn: Array = shape[rng.integers(0, len(shape), count)] * spread
        return drawn

    def _calibrated(self, truth: Mapping[NoiseKey, float], rng: np.random.Generator) -> dict[NoiseKey, Deviation]:
        """A calibration with as many trainings of each cell as the real one."""
        real, scores = self.noise.measured[self.kind], dict[NoiseKey, list[float]]()
        for cell, metrics in self.metrics.items():
            count = min(MOST_TRAININGS, 1 + max(round(real[cell, metric].df) for metric in metrics))
            columns = self._draws(truth, cell, count, rng).T
            scores |= {(cell, metric): column.tolist() for metric, column in zip(metrics, columns, strict=True)}
        measured = {key: Deviation(sd=stdev(own), df=len(own) - 1.0) for key, own in scores.items()}
        return estimates(Noise(rows=self.noise.rows, measured={self.kind: measured}), self.kind)

    def _gaps(self, truth: Mapping[NoiseKey, float], rng: np.random.Generator) -> dict[NoiseKey, float]:
        """New minus old mean of every score."""
        before, gaps = self.seeds if self.kind == PERTURBED else BASELINE_SEEDS, {}
        for cell, metrics in self.metrics.items():
            drawn = self._draws(truth, cell, self.seeds + before, rng)
            for metric, scores in zip(metrics, drawn.T, strict=True):
                gaps[cell, metric] = float(scores[: self.seeds].mean() - scores[self.seeds :].mean())
        return gaps


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; return the exit code."""
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
    for kind in kinds:
        for seeds in (1, 3):
            simulation = Simulation(noise=noise, margins=load_margins()["points"], kind=kind, seeds=seeds)
            alarms = sum(map(bool, simulation.worse_cells(options.runs)))
            of = f"{WORDS[kind]}, {seeds} {'run' if seeds == 1 else 'runs'}"
            print(f"{alarms} of {options.runs} equal runs are called worse: {of}", flush=True)
    return 0
