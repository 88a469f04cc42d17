"""What `tunegrid speed` sees and how often it is wrong, simulated with the command's own rule."""

import math

import numpy as np
import pytest

from tunegrid.lab import pairs as command
from tunegrid.lab.pairs import Machine, log_ratios, told
from tunegrid.results.pairs import Rule

RULE = Rule()
RUNS = 400
CHANCE = 0.01  # two standard errors of 1 % in 400 runs


@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize(
    "machine",
    [Machine(noise=0.3), Machine(noise=0.3, spells=0.1), Machine(noise=0.3, uneven=math.log(3)), Machine(noise=0.05)],
    ids=["noisy", "with spells", "uneven", "quiet"],
)
def test_equal_environments_are_called_worse_once_in_a_hundred_at_most(machine, cells):
    alarms = told(machine, cells, 0.0, RULE, RUNS).alarms
    print(f"{cells} cells: {alarms:.1%} of equal environments are called worse")
    assert alarms <= 0.01 + CHANCE


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.3])
def test_a_step_at_the_margin_is_called_worse_once_in_a_hundred_at_most(noise):
    assert told(Machine(noise=noise), 1, RULE.margin, RULE, RUNS).worse <= 0.01 + CHANCE


def test_looks_without_their_share_of_alpha_would_cry_wolf(monkeypatch):
    often = Rule(rounds=20)
    shared = told(Machine(noise=0.3), 1, often.margin, often, 1000).worse
    critical = Rule.critical
    monkeypatch.setattr(Rule, "critical", lambda rule, df, tests: critical(rule, df, tests / len(rule.looks)))
    unshared = told(Machine(noise=0.3), 1, often.margin, often, 1000).worse
    print(f"nine looks: {shared:.1%} called worse, {unshared:.1%} without shares")
    assert shared <= 0.01 + CHANCE < unshared


@pytest.mark.slow
def test_cells_without_their_share_of_alpha_would_cry_wolf(monkeypatch):
    critical = Rule.critical
    monkeypatch.setattr(Rule, "critical", lambda rule, df, tests: critical(rule, df, 1))
    assert told(Machine(noise=0.3), 27, 0.0, RULE, 200).alarms > 0.03


@pytest.mark.parametrize(("noise", "seen", "rounds"), [(0.01, 0.99, 6.5), (0.02, 0.8, 9.0)])
def test_a_step_that_is_ten_per_cent_slower_is_seen_in_ten_rounds(noise, seen, rounds):
    slower = told(Machine(noise=noise), 1, 0.1, RULE, RUNS)
    print(f"noise {noise:.0%}: {slower.worse:.0%} seen, in {slower.rounds:.1f} rounds")
    assert slower.worse >= seen
    assert slower.rounds <= rounds


def test_several_cells_tell_each_other_their_noise():
    alone, among = (told(Machine(noise=0.01), cells, 0.1, RULE, 100) for cells in (1, 9))
    assert among.worse == 1.0
    assert among.rounds < alone.rounds - 1


def test_a_drift_of_the_machine_leaves_no_trace_after_every_second_round():
    steady = Machine(noise=0.0, drift=0.3)
    ratios = log_ratios(steady, 2, [0.0, 0.1], RULE, np.random.default_rng(0))
    assert np.abs(ratios[0]).min() > 0
    for look in RULE.looks:
        assert ratios[:, :look].mean(axis=1) == pytest.approx([0.0, math.log(1.1)], abs=1e-12)


def test_spells_take_their_share_of_turns():
    rng = np.random.default_rng(0)
    states = Machine(noise=0.0, spells=0.1)._in_spells(20_000, rng)
    assert states.mean() == pytest.approx(0.1, abs=0.02)
    assert np.diff(states).clip(0).sum() == pytest.approx(20_000 * 0.1 / 3, rel=0.15)  # each lasts three turns


def test_the_command_prints_the_table(capsys, tmp_path):
    assert command.main(["--runs", "2", "--rounds", "4", "--measured", str(tmp_path / "measured.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["cells", "noise", "equal:", "worse"]
    assert len(lines) == 1 + 2 * len(command.MACHINES)
    assert "30 %, and spells" in (tmp_path / "measured.json").read_text()
