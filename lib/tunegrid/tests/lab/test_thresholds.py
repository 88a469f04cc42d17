"""Bounds and noise as `calibrate` derives them from runs."""

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.more_tasks import QUICK
from tunegrid.grid.profiles import ZOO_PROFILE
from tunegrid.grid.tasks import TASKS
from tunegrid.grid.zoo import zoo
from tunegrid.lab import calibrate, grid_runs, measure
from tunegrid.lab.calibrate import CalibrationPlan, blunt, calibration, read_controls
from tunegrid.lab.grid_runs import GridRun, LabSessions, OtherLabSession
from tunegrid.record import to_json
from tunegrid.record.checks import below_bounds
from tunegrid.results.bounds import HEALTHY_MISSES, Calibration, bound_of, noise_toml, thresholds_toml
from tunegrid.results.noise import Deviation, load_noise, pooled
from tunegrid.results.thresholds import load_bounds
from tunegrid.tests.records import complete

MANY = 1e6  # degrees of freedom: Student's t is normal


# One bound


def test_a_bound_is_a_quantile_of_a_new_observation_below_the_mean():
    # 2 % over two bounds: the normal quantile of 99 % is 2.326; sd 3, two seeds: 3 * sqrt(1 + 1 / 2) = 3.674; 90 - 8.547
    bound = bound_of([89.0, 91.0], Deviation(sd=3.0, df=MANY), 2)
    assert (bound.minimum, bound.healthy, bound.blunt) == (81.4, 81.4, False)
    # four degrees of freedom: 3.747 in place of 2.326; 90 - 13.77
    assert bound_of([89.0, 91.0], Deviation(sd=3.0, df=4), 2).minimum == 76.2


def test_a_bound_leaves_a_point_for_other_processors():
    assert bound_of([90.0] * 3, Deviation(sd=0.01, df=MANY), 2).minimum == 89.0


def test_a_bound_is_no_less_than_nothing():
    # 3 - 8.547, as above
    assert bound_of([2.0, 4.0], Deviation(sd=3.0, df=MANY), 2).minimum == 0.0


def test_a_bound_lies_no_further_than_a_third_of_the_way_to_a_control():
    # a third of the way from 90 to 81 is 87, above the 81.4 that a healthy run needs
    bound = bound_of([89.0, 91.0], Deviation(sd=3.0, df=MANY), 2, control=81.0)
    assert (bound.minimum, bound.healthy, bound.blunt) == (87.0, 81.4, True)
    assert not bound_of([89.0, 91.0], Deviation(sd=3.0, df=MANY), 2, control=30.0).blunt


def test_a_healthy_run_misses_any_bound_in_two_per_cent_at_most():
    """Simulated: 27 cells whose noise differs within their kinds, calibrated with five seeds, and a run of another seed."""
    rng = np.random.default_rng(2)
    rows = {"sa": 2000, "qa": 2000, "sum": 2000}
    missed = 0
    for _ in range(300):
        truth = {(cell, "f1"): (6 / rng.chisquare(6)) ** 0.5 * 2 for cell in STUDY_IDS}
        scores = {key: rng.normal(80, sd, 6) for key, sd in truth.items()}
        pools = pooled({key: Deviation(sd=float(own[:5].std(ddof=1)), df=4) for key, own in scores.items()}, rows)
        bounds = {
            (cell, name): bound_of(own[:5], pools[cell.rpartition("_")[0], name].by_cell[cell], len(truth))
            for (cell, name), own in scores.items()
        }
        missed += any(own[5] < bounds[key].minimum for key, own in scores.items())
    print(f"{missed} of 300 healthy runs miss a bound")
    assert missed / 300 <= HEALTHY_MISSES + 0.01  # three runs more, for chance


def test_a_bound_is_further_off_where_trainings_collapse():
    # as above, 90 - 8.547, and half as much again: 90 - 12.82
    assert bound_of([89.0, 91.0], Deviation(sd=3.0, df=MANY, tail=1.5), 2).minimum == 77.1


# Whole calibrations


def grid(seed, score=90.0, draw=None):
    """Every cell of the study, with one score for all, on a test set of 500 rows."""
    records = {}
    for cell in STUDY_IDS:
        task = next(task for task in TASKS if task.id == cell.split("_")[1])
        record = complete(
            cell,
            scores=dict.fromkeys(task.bounded_scores, score),
            bounded_scores=list(task.bounded_scores),
            main_score=task.main_score,
            seeds={"seed": seed, "split_seed": 42, "perturbation": draw},
        )
        records[cell] = replace(record, data=replace(record.data, rows=replace(record.data.rows, test=500)))
    return records


def grid_run(seeds, draw=None):
    return GridRun(seeds=range(seeds), draw=draw)


def runs():
    """Seeds 0 and 1, and two draws of seed 0."""
    made = (grid_run(2), {0: grid(0, 88.0), 1: grid(1, 92.0)})
    return [made, *((grid_run(1, draw), {0: grid(0, 88.0 + draw, draw)}) for draw in (1, 2))]


def test_seeds_are_trained_five_at_a_time_then_moved_starts_and_controls():
    names = [session.name for session in CalibrationPlan(seeds=12, draws=2).sessions]
    seeds = ["quick-seeds-0-4", "quick-seeds-5-9", "quick-seeds-10-11"]
    assert names == [*seeds, "quick-seeds-0-2-draw-1", "quick-seeds-0-2-draw-2", "quick-controls"]
    assert [session.name for session in CalibrationPlan(profile="zoo", seeds=5).sessions] == ["zoo-seeds-0-4", "zoo-controls"]


def test_cells_with_a_tail_have_sessions_of_their_own():
    one, other = CalibrationPlan(seeds=20, more_seeds=10).tails(["t5_sa_lora", "t5_sa_qlora"])
    assert (list(one.seeds), list(other.seeds), one.trainings) == ([20, 21, 22, 23, 24], [25, 26, 27, 28, 29], 10)
    assert one.path != CalibrationPlan(seeds=20, more_seeds=10).tails(["t5_sa_lora"])[0].path
    assert CalibrationPlan().tails([]) == []


def collapsed(scores):
    """A calibration of one cell whose seeds have these scores."""
    records = [grid(seed, score)["t5_sa_lora"] for seed, score in enumerate(scores)]
    return Calibration(seeds=[{"t5_sa_lora": record} for record in records])


def test_a_cell_of_which_one_training_collapsed_needs_more_seeds():
    normal = [90 + float(ndtri((index + 0.5) / 20)) for index in range(20)]  # as normal as scores can be
    assert collapsed(normal).with_tails() == []
    assert collapsed([*normal[1:], 85.0]).with_tails() == ["t5_sa_lora"]
    assert collapsed([*normal[1:], 95.0]).with_tails() == []  # too good is no collapse


def test_more_seeds_of_a_cell_count_in_its_bound_and_its_noise():
    more = GridRun(seeds=range(2, 3), only=("t5_sa_lora",))
    run = (more, {2: {"t5_sa_lora": grid(2, 84.0)["t5_sa_lora"]}})
    measured = calibration([*runs(), run], {})
    bounds, noise = tomllib.loads(thresholds_toml(measured)), tomllib.loads(noise_toml(measured))
    assert bounds["cells"]["t5_sa_lora"]["accuracy"]["scores"] == [88.0, 92.0, 84.0]
    assert bounds["cells"]["t5_sa_qlora"]["accuracy"]["scores"] == [88.0, 92.0]
    assert noise["cells"]["t5_sa_lora"]["accuracy"]["seeds"] == {"sd": 4.0, "df": 2, "scores": [[88.0, 92.0, 84.0]]}
    assert noise["evidence"]["seeds"] == [0, 1]
    assert noise["evidence"]["more_seeds"] == {"t5_sa_lora": [2]}


def test_both_kinds_of_noise_are_measured(tmp_path):
    path = tmp_path / "noise.toml"
    path.write_text(noise_toml(calibration(runs(), {})))
    written = tomllib.loads(path.read_text())
    # 88 and 92 between seeds; 88, 89 and 90 at seed 0, its run without a draw among them
    assert written["cells"]["bert_qa_lora"]["f1"] == {
        "seeds": {"sd": 2.828, "df": 1, "scores": [[88.0, 92.0]]},
        "perturbed": {"sd": 1.0, "df": 2, "scores": [[88.0, 89.0, 90.0]]},
    }
    assert written["rows"] == {"sum": 500, "qa": 500, "sa": 500}
    assert (written["evidence"]["seeds"], written["evidence"]["perturbed_seeds"]) == ([0, 1], [0])
    assert load_noise(path).of("perturbed", grid(0)["bert_qa_lora"], "f1").sd == pytest.approx(1.0, rel=0.2)


def test_bounds_keep_their_evidence(tmp_path):
    path = tmp_path / "quick.toml"
    controls = {(cell, "f1"): 60.0 for cell in STUDY_IDS}
    measured = calibration(runs(), controls)
    path.write_text(thresholds_toml(measured))
    entry = tomllib.loads(path.read_text())["cells"]["t5_qa_sft"]["f1"]
    assert entry == {"minimum": 80.0, "mean": 90.0, "sd": 2.83, "scores": [88.0, 92.0], "control": 60.0}
    assert load_bounds(path)["t5_qa_sft"]["f1"] == 80.0
    assert len(load_bounds(path)) == 27
    messages = blunt(measured)
    assert len(messages) == 9  # f1, of questions only
    assert messages[0].startswith("blunt: bert_qa_lora f1 80.0; a healthy run needs ")


def test_a_run_that_lacks_a_score_calibrates_nothing():
    made = runs()
    made[0][1][1]["gpt2_sa_sft"].scores["accuracy"] = None
    with pytest.raises(InputError, match="gpt2_sa_sft left no accuracy in one of the runs"):
        thresholds_toml(calibration(made, {}))
    with pytest.raises(InputError, match="does not name its device"):
        thresholds_toml(Calibration(seeds=[{"a_sa_b": replace(made[0][1][0]["gpt2_sa_sft"], device=None)}]))


# Controls


def controls_file(path, rows):
    path.write_text(json.dumps({"version": "5", "benchmarks": [{"extra_info": row} for row in rows]}))
    return path


def test_the_best_control_counts(tmp_path):
    rows = [
        {"control": str(score), "of": "bert_qa_lora", "scores": {"f1": score, "exact_match": None}} for score in (3.0, 9.0, 5.0)
    ]
    best = read_controls(controls_file(tmp_path / "c.json", rows))
    assert best == {("bert_qa_lora", "f1"): 9.0, ("bert_qa_lora", "exact_match"): 0.0}
    assert read_controls(tmp_path / "c.json", ("9.0",))["bert_qa_lora", "f1"] == 5.0


@pytest.mark.parametrize("text", ["", '{"benchmarks": [{"extra_info": {"cell": "a"}}]}'])
def test_a_file_without_controls_is_one_sentence(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"holds no controls .*`pytest -m controls --benchmark-json="):
        read_controls(path)


@pytest.mark.parametrize(
    ("profile", "cells", "count"),
    [("quick", STUDY_IDS, 99), ("zoo", zoo().ids(ZOO_PROFILE), 423), ("tasks", tuple(QUICK), 11)],
)
def test_all_committed_controls_miss_a_bound_of_today_but_those_that_are_known(profile, cells, count):
    path = ROOT / "reports" / f"controls-{profile}-cpu.json"
    assert {cell for cell, _ in read_controls(path)} == set(cells)
    bounds = load_bounds(ROOT / "benchmarks" / "thresholds" / f"{profile}.toml")
    rows = [row["extra_info"] for row in json.loads(path.read_text())["benchmarks"]]
    reached = {(row["control"], row["of"]) for row in rows if not below_bounds(row["scores"], bounds[row["of"]])}
    assert len(rows) == count
    assert reached == set()


# The command


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Sessions and files of the command, in a folder of their own; what it would train is noted."""
    started = []

    def train(session, workers):
        started.append(session.name)
        save(session) if isinstance(session, GridRun) else save_controls(session)

    monkeypatch.setattr(grid_runs, "folder", lambda: tmp_path)
    monkeypatch.setattr(GridRun, "train", train)
    monkeypatch.setattr(OtherLabSession, "train", train)
    return started


def save(training):
    rows = []
    for seed in training.seeds:
        score = 90.0 + seed + (0.1 * training.draw if training.draw else 0.0)
        rows += [to_json(grid(seed, score, training.draw)[cell]) for cell in training.cells]
    training.path.write_text(json.dumps({"benchmarks": [{"extra_info": row} for row in rows]}))


def save_controls(session):
    rows = [
        {"control": "learning_rate_0", "of": cell, "scores": dict.fromkeys(record.bounded_scores, 20.0)}
        for cell, record in grid(0).items()
    ]
    controls_file(session.path, rows)


ARGUMENTS = ["--seeds", "2", "--perturbed-seeds", "2", "--draws", "2", "--to"]


def test_the_command_trains_what_is_missing_and_writes_its_files(workplace, tmp_path, capsys):
    save(grid_run(2))
    save(grid_run(2, 1))
    assert calibrate.main([*ARGUMENTS, str(tmp_path)]) == 0
    assert workplace == ["quick-seeds-0-1-draw-2", "quick-controls"]
    output = capsys.readouterr().out
    assert "1 of 1: keeps quick-seeds-0-1" in output
    assert "27 of 27 controls miss a bound" in output
    thresholds = tmp_path / "benchmarks" / "thresholds"
    assert load_noise(thresholds / "noise.toml").of("perturbed", grid(0)["t5_sa_sft"], "accuracy").df >= 4
    assert len(load_bounds(thresholds / "quick.toml")) == 27
    figures = json.loads((tmp_path / "reports" / "measured.json").read_text())
    assert figures["calibrate quick"]["seeds"] == 2
    assert (figures["controls quick"]["controls"], figures["controls quick"]["missed"]) == (27, 27)


def test_measure_calibrates_by_its_own_plan(workplace, tmp_path):
    plan = CalibrationPlan(seeds=3, perturbed=1, draws=1)
    work = measure.Work(plan=plan, sessions=LabSessions(workers="1"), to=tmp_path, runs=1)
    assert measure.STAGES["bounds"].do(work) == 0
    assert workplace == ["quick-seeds-0-2", "quick-seeds-0-0-draw-1", "quick-controls"]
    assert len(load_bounds(work.thresholds / "quick.toml")) == 27
    assert json.loads(work.measured.read_text())["calibrate quick"]["seeds"] == 3


def test_the_same_command_trains_nothing_twice(workplace, tmp_path):
    calibrate.main([*ARGUMENTS, str(tmp_path)])
    first = list(workplace)
    calibrate.main([*ARGUMENTS, str(tmp_path)])
    assert (first, workplace) == (
        ["quick-seeds-0-1", "quick-seeds-0-1-draw-1", "quick-seeds-0-1-draw-2", "quick-controls"],
        first,
    )
    calibrate.main([*ARGUMENTS, str(tmp_path), "--fresh"])
    assert workplace == first * 2


def test_a_kept_session_of_other_seeds_is_refused(workplace, tmp_path, capsys):
    save(grid_run(3))
    grid_run(3).path.rename(grid_run(2).path)
    with pytest.raises(SystemExit):
        calibrate.main([*ARGUMENTS, str(tmp_path)])
    assert "is of other seeds or draws than its name says; remove it" in capsys.readouterr().err


def test_some_cells_do_not_replace_the_files_of_all(capsys):
    with pytest.raises(SystemExit):
        calibrate.main(["--cells", "t5_sa_lora"])
    assert "--cells would replace the files of all cells; give --to DIR" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--seeds", "1"], ["--seeds", "2", "--perturbed-seeds", "3"]])
def test_too_few_seeds_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        calibrate.main(arguments)
    assert "at least 2 seeds" in capsys.readouterr().err
