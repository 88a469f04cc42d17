"""What the gate sees and how often it is wrong, simulated: the whole run's error rate, and the power it promises."""

from dataclasses import replace

import numpy as np
import pytest

from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.lab import power as command
from tunegrid.lab.power import Setting, missed_bounds, smallest, worse_cells
from tunegrid.results import noise, quality
from tunegrid.results.noise import PERTURBED, SEEDS, Deviation, Noise, deviation, load_noise
from tunegrid.results.statistics import by_training

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
    return Noise(profile="quick", rows={"sa": 2000, "qa": 2000, "sum": 2000}, measured=measured)


def alarms(kind, **options):
    """The share of simulated equal runs that are called worse in any cell or score."""
    share = sum(map(bool, worse_cells(Setting(noise=made_up(), margins=MARGINS, kind=kind, **options), RUNS))) / RUNS
    print(f"{kind} {options}: {share:.1%} of equal runs are called worse")
    return share


@pytest.mark.parametrize("kind", [PERTURBED, SEEDS])
@pytest.mark.parametrize("seeds", [1, 3])
def test_at_most_five_per_cent_of_equal_runs_are_called_worse(kind, seeds):
    assert alarms(kind, seeds=seeds) <= 0.05 + CHANCE


@pytest.fixture(scope="module")
def measured():
    """The committed calibration, but with twenty seeds of every cell whose falls are longer than their rises (skew -1)."""
    committed, rng = load_noise(), np.random.default_rng(0)
    fallen = {cell: (4 - rng.gamma(4, size=20)) / 2 for cell, _ in committed.measured[SEEDS]}
    scores = {(cell, metric): [list(90 + own.sd * fallen[cell])] for (cell, metric), own in committed.measured[SEEDS].items()}
    deviations = {key: deviation(groups) for key, groups in scores.items()}
    return replace(committed, measured={SEEDS: deviations}, scores={SEEDS: scores})


@pytest.mark.slow
def test_collapses_make_no_alarms_though_normal_noise_knows_none(measured, monkeypatch):
    setting = Setting(noise=measured, margins=MARGINS, kind=SEEDS)
    alarms = sum(map(bool, worse_cells(setting, RUNS))) / RUNS
    monkeypatch.setattr(noise, "tails", lambda scores, rows: {})
    normal = sum(map(bool, worse_cells(Setting(noise=measured, margins=MARGINS, kind=SEEDS), RUNS))) / RUNS
    print(f"equal runs called worse: {alarms:.1%}; held to normal noise {normal:.1%}")
    assert alarms <= 0.05 + CHANCE < 0.09 < normal


def test_collapses_make_no_healthy_run_miss_a_bound(measured, monkeypatch):
    setting = Setting(noise=measured, margins=MARGINS, kind=SEEDS)
    missed = sum(map(bool, missed_bounds(setting, RUNS))) / RUNS
    monkeypatch.setattr(noise, "tails", lambda scores, rows: {})
    normal = sum(map(bool, missed_bounds(setting, RUNS))) / RUNS
    print(f"healthy runs that miss a bound: {missed:.1%}; bounds by normal noise {normal:.1%}")
    assert missed <= 0.02 + 0.02 < normal  # two standard errors of 2 % in 200 runs


def test_simulated_scores_are_the_measured_residuals(measured):
    setting = Setting(noise=measured, margins=MARGINS, kind=SEEDS)
    shape = setting.shapes["t5_sa"]
    assert shape.shape == (60, 2)  # three cells of twenty seeds, two scores
    assert (shape**2).mean() == pytest.approx(1.0, abs=0.06)


def test_without_holm_a_third_of_equal_runs_would_be_called_worse(monkeypatch):
    monkeypatch.setattr(quality, "holm", dict)
    assert alarms(PERTURBED) > 0.3


@pytest.mark.parametrize("kind", [PERTURBED, SEEDS])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.slow
def test_the_smallest_drop_is_called_worse_four_times_in_five(kind, seeds):
    many = 10**5  # degrees of freedom: noise is known
    setting = Setting(noise=made_up(many, many), margins={"other": 1.0}, kind=kind, seeds=seeds)
    cell = "gpt2_qa_lora"
    drop = smallest(setting)[cell]
    called = sum(cell in worse for worse in worse_cells(replace(setting, drops={cell: drop}), 300)) / 300
    print(f"{kind}, {seeds} seeds: a drop of {drop:.2f} points is called worse in {called:.0%}")
    assert called == pytest.approx(0.8, abs=0.07)


def test_the_smallest_drop_by_hand():
    # 27 cells share 4.5 %: the normal quantile of 1 - 0.045 / 27 is 2.935; plus 0.842 for power, times sqrt 2 for two runs
    noise = made_up(10**6, 10**6)
    setting = Setting(noise=noise, margins=MARGINS, kind=PERTURBED)
    sd = setting.estimates["t5_qa_sft", "f1"].sd
    assert smallest(setting)["t5_qa_sft"] == pytest.approx(5.341 * sd, rel=1e-3)
    assert smallest(replace(setting, seeds=3))["t5_qa_sft"] == pytest.approx(5.341 * sd / 3**0.5, rel=1e-3)


# Why a t-test on known noise: a hierarchical bootstrap (seeds, then rows) learns too little from three seeds

ROWS, TAU = 300, 0.6  # rows, and how far trainings differ, in logits


def trainings(rng, count, skill):
    """Hits of so many trainings, (trainings, rows): each row has its own difficulty, each training its own luck."""
    logits = skill + rng.normal(0, TAU, (count, 1))
    return 100.0 * (rng.random((count, ROWS)) < 1 / (1 + np.exp(-logits)))


def hierarchical_bootstrap(old, new, rng, resamples=400):
    """One-sided p-value: seeds and, within them, rows are drawn again (Davison and Hinkley 1997, section 3.8)."""
    points = new.mean() - old.mean()
    draws = np.empty(resamples)
    for index in range(resamples):
        rows = rng.integers(0, ROWS, ROWS)
        first, second = (runs[rng.integers(0, len(runs), len(runs))][:, rows].mean() for runs in (old, new))
        draws[index] = second - first
    return (1 + (draws - points <= points).sum()) / (resamples + 1)


@pytest.mark.slow
def test_a_hierarchical_bootstrap_of_three_seeds_cries_wolf_and_known_noise_does_not():
    rng = np.random.default_rng(20)
    skill = rng.normal(2, 2, ROWS)
    sd = trainings(rng, 2000, skill).mean(axis=1).std(ddof=1)
    bootstrap = known = 0
    for run in range(1000):
        old, new = trainings(rng, 3, skill), trainings(rng, 3, skill)
        estimate = sd * (rng.chisquare(8) / 8) ** 0.5  # what a calibration would have measured
        known += by_training(new.mean() - old.mean(), estimate * (2 / 3) ** 0.5, 8, rows=ROWS, flips=(0, 0)).p_worse < 0.05
        bootstrap += run < 300 and hierarchical_bootstrap(old, new, rng) < 0.05
    print(f"equal runs called worse: by the bootstrap {bootstrap / 300:.1%}, by the t-test {known / 1000:.1%}")
    assert bootstrap / 300 > 0.08
    assert known / 1000 <= 0.05 + 0.014  # two standard errors


# The command


def test_the_command_prints_drops_and_error_rates(capsys):
    assert command.main(["--runs", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["cell", "main", "score"]
    assert sum(line.startswith(("bert_", "gpt2_", "t5_")) for line in lines) == 27
    assert any("of 5 equal runs are called worse: other seeds, 1 run (measured residuals)" in line for line in lines)
    assert lines[-1].endswith("of 5 healthy runs miss a bound")


def test_a_file_without_noise_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--noise", str(tmp_path / "none.toml")])
    assert "holds no noise; `python -m tunegrid.lab calibrate` measures it" in capsys.readouterr().err
