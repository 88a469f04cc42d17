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
from tunegrid.lab.grid_runs import note
from tunegrid.results.judgements import Verdict
from tunegrid.results.noise import (
    NOISE,
    PERTURBED,
    SEEDS,
    Deviation,
    Groups,
    Noise,
    NoiseKey,
    ScoresByKey,
    deviation,
    kind_of_cell,
    load_noise,
    pooled,
)
from tunegrid.results.quality import decide
from tunegrid.results.statistics import Array, Effect, by_training
from tunegrid.results.thresholds import load_margins

COMMON = 0.9  # correlation of one cell's normal scores: they rest on the same rows
BASELINE_SEEDS = 5
MOST_TRAININGS = 200  # of a cell in a simulated calibration: as good as any number


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is simulated: noise, margins, and the number of runs to judge.

    Attributes:
        noise: calibrated.
        margins: the smallest drop that counts as a regression, by score.
        kind: of noise: PERTURBED, every run paired with one of its seed, or SEEDS, against a baseline of other seeds.
        seeds: of the run to judge.
    """

    noise: Noise
    margins: Mapping[str, float]
    kind: str
    seeds: int = 1

    @cached_property
    def estimates(self) -> dict[NoiseKey, Deviation]:
        """What the calibration says of every score."""
        return estimates(self.noise.measured[self.kind], self.noise.rows, self.noise.scores.get(self.kind))

    @cached_property
    def metrics(self) -> dict[str, list[str]]:
        """The scores of each cell that was calibrated."""
        metrics: dict[str, list[str]] = defaultdict(list)
        for cell, metric in self.estimates:
            metrics[cell].append(metric)
        return dict(metrics)

    @cached_property
    def shapes(self) -> dict[str, Array]:
        """By kind of cells, the residuals of its trainings in standard deviations: one row each, one column per score."""
        scores, rows = self.noise.scores.get(self.kind, {}), defaultdict(list)
        for cell, metrics in self.metrics.items():
            columns = [standardised(scores.get((cell, metric), [])) for metric in metrics]
            if all(len(column) for column in columns):
                rows[kind_of_cell(cell)].append(np.column_stack(columns))
        return {kind: np.concatenate(parts) for kind, parts in rows.items()}

    @cached_property
    def mains(self) -> dict[str, str]:
        """The main score of every cell of the study that was calibrated."""
        mains = {cell.id: cell.task.main_score for cell in STUDY.cells(QUICK_PROFILE)}
        return {cell: metric for cell, metric in self.estimates if mains.get(cell) == metric}

    @property
    def baseline_seeds(self) -> int:
        """How many runs of a cell the baseline has."""
        return self.seeds if self.kind == PERTURBED else BASELINE_SEEDS

    @property
    def factor(self) -> float:
        """The error of the difference of means, for a deviation of 1."""
        return sqrt(1 / self.seeds + 1 / self.baseline_seeds)


def estimates(
    measured: Mapping[NoiseKey, Deviation], rows: Mapping[str, int], scores: ScoresByKey | None
) -> dict[NoiseKey, Deviation]:
    """Moderated deviations by cell and score."""
    pools = pooled(measured, rows, scores)
    return {key: pools[key] for key in measured}


def standardised(groups: Groups) -> Array:
    """Residuals with a variance of 1: a mean of n takes 1 / n of it, which is given back. Empty where nothing differs."""
    own = deviation(groups)
    if not own or not own.sd:
        return np.array([])
    several = [np.asarray(group, float) for group in groups if len(group) > 1]
    return np.concatenate([(group - group.mean()) / own.sd / sqrt(1 - 1 / len(group)) for group in several])


def effect(setting: Setting, key: NoiseKey, points: float, noise: Deviation) -> Effect:
    """A change of so many points, as the gate would see it."""
    rows = setting.noise.rows[key[0].split("_")[1]]
    tail = noise.tail_of(setting.seeds)
    return by_training(points, noise.sd * setting.factor, noise.df, rows=rows, flips=(0, 0), tail=tail)


def worse_cells(setting: Setting, runs: int) -> list[set[str]]:
    """The cells that each simulated run's gate calls worse."""
    rng = np.random.default_rng(0)
    return [_judged(setting, rng) for _ in range(runs)]


def _judged(setting: Setting, rng: np.random.Generator) -> set[str]:
    truth = _truth(setting, rng)
    noise = _calibrated(setting, truth, rng)
    gaps = _gaps(setting, truth, rng)
    effects = {key: effect(setting, key, gaps[key], noise[key]) for key in truth}
    decisions = decide(effects, setting.mains, setting.margins)
    return {cell for (cell, _), (verdict, _) in decisions.items() if verdict is Verdict.WORSE}


def _truth(setting: Setting, rng: np.random.Generator) -> dict[NoiseKey, float]:
    """True deviations, as the real calibration leaves them open: a cell's is off by as much for all its scores."""
    factors: dict[str, float] = {}
    for (cell, _), own in setting.estimates.items():
        factors.setdefault(cell, sqrt(own.df / rng.chisquare(own.df)))
    return {key: own.sd * factors[key[0]] for key, own in setting.estimates.items()}


def _draws(setting: Setting, truth: Mapping[NoiseKey, float], cell: str, count: int, rng: np.random.Generator) -> Array:
    """Scores of so many trainings, a row each, around 0: measured residuals of the cell's kind, in its own deviations."""
    metrics = setting.metrics[cell]
    spread = np.array([truth[cell, metric] for metric in metrics])
    measured = setting.shapes.get(kind_of_cell(cell))
    if measured is not None:
        drawn: Array = measured[rng.integers(0, len(measured), count)] * spread
        return drawn
    common, own = rng.normal(size=(count, 1)), rng.normal(size=(count, len(metrics)))
    normal: Array = (sqrt(COMMON) * common + sqrt(1 - COMMON) * own) * spread
    return normal


def _calibrated(setting: Setting, truth: Mapping[NoiseKey, float], rng: np.random.Generator) -> dict[NoiseKey, Deviation]:
    """A calibration with as many trainings of each cell as the real one; tails where the real one has them."""
    real = setting.noise.measured[setting.kind]
    scores: dict[NoiseKey, list[float]] = {}
    for cell, metrics in setting.metrics.items():
        count = min(MOST_TRAININGS, 1 + max(round(real[cell, metric].df) for metric in metrics))
        drawn = _draws(setting, truth, cell, count, rng)
        scores |= {(cell, metric): drawn[:, index].tolist() for index, metric in enumerate(metrics)}
    measured = {key: Deviation(sd=stdev(own), df=len(own) - 1.0) for key, own in scores.items()}
    known = {key: [own] for key, own in scores.items()} if setting.noise.scores.get(setting.kind) else None
    return estimates(measured, setting.noise.rows, known)


def _gaps(setting: Setting, truth: Mapping[NoiseKey, float], rng: np.random.Generator) -> dict[NoiseKey, float]:
    """New minus old mean of every score."""
    count, gaps = setting.seeds, {}
    for cell, metrics in setting.metrics.items():
        drawn = _draws(setting, truth, cell, count + setting.baseline_seeds, rng)
        for metric, scores in zip(metrics, drawn.T, strict=True):
            gaps[cell, metric] = float(scores[:count].mean() - scores[count:].mean())
    return gaps


WORDS = {PERTURBED: "same seeds", SEEDS: "other seeds"}


def main(arguments: list[str] | None = None) -> int:
    """Print the shares; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab power", description=__doc__)
    parser.add_argument("--noise", type=Path, default=NOISE, metavar="FILE", help="calibrated noise (default: the suite's)")
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="simulated runs a figure (default 1000)")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="also note the figures in this file")
    options = parser.parse_args(arguments)
    try:
        noise = load_noise(options.noise)
    except InputError as error:
        refuse(parser, error)
    kinds = [kind for kind, measured in noise.measured.items() if measured]
    if not kinds:
        refuse(parser, f"{options.noise} holds no noise; `python -m tunegrid.lab calibrate` measures it")
    margins = load_margins()["points"]
    figures = {}
    for kind in kinds:
        drawn = "measured residuals" if noise.scores.get(kind) else "normal noise: the file has no scores of it"
        for seeds in (1, 3):
            setting = Setting(noise=noise, margins=margins, kind=kind, seeds=seeds)
            alarms = sum(map(bool, worse_cells(setting, options.runs)))
            of = f"{WORDS[kind]}, {seeds} {'run' if seeds == 1 else 'runs'}"
            print(f"{alarms} of {options.runs} equal runs are called worse: {of} ({drawn})", flush=True)
            figures[f"worse: {of}"] = alarms
    note(options.measured, "power", {"runs": options.runs, **figures})
    return 0
