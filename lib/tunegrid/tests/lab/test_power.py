"""How often a session is wrong, and what it sees, simulated: as reckoned by hand."""

import numpy as np
import pytest

from tunegrid.gate.noise import PERTURBED, SEEDS, Noise
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.lab import power as command
from tunegrid.lab.power import Simulation, runs_until
from tunegrid.tests.outputs import refusal

RUNS = 60
MAINS = {cell.id: cell.task.main_score for cell in STUDY.cells(QUICK_PROFILE)}


@pytest.fixture(scope="module")
def noise():
    """Normal scores of 27 cells around 50, where a point is a point: 300 seeds of sd 0.7, and moved
    starts of 0.2.
    """
    rng = np.random.default_rng(4)
    rows = dict.fromkeys(("sa", "qa", "sum"), 10_000)
    groups = {
        SEEDS: {pair: [rng.normal(50, 0.7, 300)] for pair in MAINS.items()},
        PERTURBED: {pair: [rng.normal(50, 0.2, 300)] for pair in MAINS.items()},
    }
    return Noise(profile="quick", rows=rows, scores=groups)


@pytest.mark.parametrize(
    ("kind", "loss", "called", "confirmed"),
    [
        # 4.5 % over 27 cells and 2 % over as many bounds are normal quantiles of 2.94 and 3.18: few
        # equal runs are told.
        (SEEDS, {}, 0.04, 0.0),
        # Told if it is 2.94 * 0.7 * sqrt(1 + 1 / 5) = 2.25 below the mean of five, or 3.18 * 0.7 =
        # 2.22 below all: 3 points are, if a normal number is below 1.1. The second needs 4.5 % for
        # itself, which is 1.3 below: 2.4 deviations.
        (SEEDS, {"lost": 3.0}, 0.87, 0.86),
        # One in ten; two in a row one time in a hundred.
        (SEEDS, {"lost": 30.0, "share": 0.1}, 0.1, 0.01),
        # 2.94 * 0.2 * sqrt(2) = 0.83, which is below the margin of 1: a point is told every other
        # time, and needs no second.
        (PERTURBED, {"lost": 1.0}, 0.5, 0.5),
    ],
)
def test_runs_are_told_and_confirmed_as_often_as_by_hand(noise, kind, loss, called, confirmed):
    called_count = confirmed_count = 0
    for run in Simulation(noise=noise, margins={"other": 1.0}, kind=kind, **loss).runs(RUNS):
        cells = {run.changed_cell} if loss else MAINS.keys()
        called_count += not run.called.isdisjoint(cells)
        confirmed_count += not run.confirmed.isdisjoint(cells)
    for count, share in ((called_count, called), (confirmed_count, confirmed)):
        standard_error = (share * (1 - share) / RUNS) ** 0.5
        assert abs(count / RUNS - share) <= 3 * max(standard_error, 1 / RUNS)


@pytest.mark.parametrize(
    ("chance", "healthy", "runs", "misses"),
    [
        # 5 % over 27 cells are 0.00185. One miss in ten runs of a cell that misses in 1 of 27,000
        # is below it, and 1 - 0.5**3 = 0.875 is the first above 0.8.
        (0.5, 1 / 27_000, 3, 1),
        # A single one would have to come in 50 runs; two are 1 - 0.91**33 - 33 * 0.09 * 0.91**32 =
        # 0.81 in 33.
        (0.09, 1e-3, 33, 2),
    ],
)
def test_misses_that_no_second_seed_confirms_tell_in_time(chance, healthy, runs, misses):
    assert runs_until(chance, healthy) == (runs, misses)


def test_the_command_prints_what_is_told_and_after_how_many_runs(tmp_path, capsys):
    assert command.main(["--runs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Of 2 simulated runs:"
    assert [line.split("  ")[0] for line in lines[2:-1]] == [
        "equal runs",
        "equal runs",
        "3 points lost",
        "3 points lost",
        "30 points lost at one seed in ten",
    ]
    assert lines[-1].startswith("A collapse of one seed in ten shows after ")
    assert "holds no noise" in refusal(capsys, command.main, "--noise", tmp_path / "none.toml")
