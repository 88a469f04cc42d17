"""How often the gate is wrong, simulated: the whole run's error rate."""

import numpy as np
import pytest

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.lab import power as command
from tunegrid.lab.power import Simulation
from tunegrid.results.noise import PERTURBED, SEEDS, Deviation, Noise

MARGINS = {"other": 0.0}  # so that only statistics keep equal runs from being called worse
RUNS = 200
CHANCE = 0.03  # two standard errors of 5 % in 200 runs


def made_up(df_seeds=4, df_perturbed=9):
    """Noise of all 27 cells: one backbone and task has several times another's, and cells of a kind differ."""
    rng = np.random.default_rng(4)
    measured = {SEEDS: {}, PERTURBED: {}}
    for cell in STUDY.cells(QUICK_PROFILE):
        spread = {"bert": 0.5, "gpt2": 1.0, "t5": 3.0}[cell.backbone.id] * rng.uniform(0.6, 1.6)
        for metric in cell.task.bounded_scores:
            measured[SEEDS][cell.id, metric] = Deviation(sd=spread, df=df_seeds)
            measured[PERTURBED][cell.id, metric] = Deviation(sd=spread / 4, df=df_perturbed)
    no_scores = {kind: {key: [] for key in own} for kind, own in measured.items()}
    return Noise(profile="quick", rows={"sa": 2000, "qa": 2000, "sum": 2000}, measured=measured, scores=no_scores)


def alarms(kind, **options):
    """The share of simulated equal runs that are called worse in any cell or score."""
    return sum(map(bool, Simulation(noise=made_up(), margins=MARGINS, kind=kind, **options).worse_cells(RUNS))) / RUNS


@pytest.mark.parametrize(("kind", "seeds"), [(PERTURBED, 1), (SEEDS, 3)])
def test_at_most_five_per_cent_of_equal_runs_are_called_worse(kind, seeds):
    assert alarms(kind, seeds=seeds) <= 0.05 + CHANCE


def test_the_command_prints_error_rates(capsys):
    assert command.main(["--runs", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert any("of 5 equal runs are called worse: other seeds, 1 run" in line for line in lines)
