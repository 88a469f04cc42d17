"""Bounds and noise as `calibrate` derives them from runs."""

import json
import tomllib

import pytest
from scipy.special import ndtri

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.tasks import TASKS
from tunegrid.lab import calibrate, grid_runs, measure
from tunegrid.lab.calibrate import CalibrationPlan, blunt, calibration, noise_toml, read_controls, with_tails
from tunegrid.lab.grid_runs import GridRun, LabSessions, OtherLabSession
from tunegrid.results.bounds import Calibration, bound_of, thresholds_toml
from tunegrid.results.noise import Deviation, load_noise
from tunegrid.results.thresholds import load_bounds
from tunegrid.tests.records import altered, complete, saved, seeds_as

MANY = 1e6  # degrees of freedom: Student's t is normal


@pytest.mark.parametrize(
    ("scores", "deviation", "control", "minimum"),
    [
        # 2 % over two bounds: the normal quantile of 99 % is 2.326; sd 3, two seeds: 3 * sqrt(1 + 1 / 2) = 3.674; 90 - 8.547
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, None, 81.4),
        # four degrees of freedom: 3.747 in place of 2.326; 90 - 13.77
        ([89.0, 91.0], {"sd": 3.0, "df": 4}, None, 76.2),
        # where trainings collapse half as much again: 90 - 12.82
        ([89.0, 91.0], {"sd": 3.0, "df": MANY, "tail": 1.5}, None, 77.1),
        ([90.0] * 3, {"sd": 0.01, "df": MANY}, None, 89.0),  # a point for other processors
        ([2.0, 4.0], {"sd": 3.0, "df": MANY}, None, 0.0),  # no less than nothing
        # a third of the way from 90 to 81 is 87, above the 81.4 that a healthy run needs
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, 81.0, 87.0),
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, 30.0, 81.4),
    ],
)
def test_a_bound_is_a_quantile_of_a_new_observation_below_the_mean(scores, deviation, control, minimum):
    bound = bound_of(scores, Deviation(**deviation), 2, **{"control": control} if control else {})
    assert (bound.minimum, bound.blunt) == (minimum, minimum == 87.0)


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
            seeds=seeds_as(seed, draw),
        )
        records[cell] = altered(record, "data.rows", record.data.rows | {"test": 500})
    return records


def grid_run(seeds, draw=None):
    return GridRun(seeds=range(seeds), draw=draw)


def runs():
    """Seeds 0 and 1, and two draws of seed 0."""
    made = (grid_run(2), {0: grid(0, 88.0), 1: grid(1, 92.0)})
    return [made, *((grid_run(1, draw), {0: grid(0, 88.0 + draw, draw)}) for draw in (1, 2))]


def test_seeds_are_trained_five_at_a_time_then_moved_starts_controls_and_cells_with_a_tail():
    names = [session.name for session in CalibrationPlan(seeds=12, draws=2).sessions]
    seeds = ["quick-seeds-0-4", "quick-seeds-5-9", "quick-seeds-10-11"]
    assert names == [*seeds, "quick-seeds-0-2-draw-1", "quick-seeds-0-2-draw-2", "quick-controls"]
    assert [session.name for session in CalibrationPlan(profile="zoo", seeds=5).sessions] == ["zoo-seeds-0-4", "zoo-controls"]
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
    assert with_tails(collapsed(normal)) == []
    assert with_tails(collapsed([*normal[1:], 85.0])) == ["t5_sa_lora"]
    assert with_tails(collapsed([*normal[1:], 95.0])) == []  # too good is no collapse


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


def test_the_best_control_counts(tmp_path):
    rows = [
        {"plant": str(score), "of": "bert_qa_lora", "scores": {"f1": score, "exact_match": None}} for score in (3.0, 9.0, 5.0)
    ]
    best = read_controls(saved(tmp_path / "c.json", *rows))
    assert best == {("bert_qa_lora", "f1"): 9.0, ("bert_qa_lora", "exact_match"): 0.0}
    assert read_controls(tmp_path / "c.json", ("9.0",))["bert_qa_lora", "f1"] == 5.0
    with pytest.raises(InputError, match="holds no controls"):
        read_controls(saved(tmp_path / "c.json", {"cell": "a"}))


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
        rows += [grid(seed, score, training.draw)[cell] for cell in training.cells]
    saved(training.path, *rows)


def save_controls(session):
    rows = [
        {"plant": "learning_rate_0", "of": cell, "scores": dict.fromkeys(record.bounded_scores, 20.0)}
        for cell, record in grid(0).items()
    ]
    saved(session.path, *rows)


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
    calibrate.main([*ARGUMENTS, str(tmp_path)])
    assert len(workplace) == 2  # nothing twice
    calibrate.main([*ARGUMENTS, str(tmp_path), "--fresh"])
    assert len(workplace) == 2 + 4
    work = measure.Work(plan=CalibrationPlan(seeds=3, perturbed=1, draws=1), sessions=LabSessions(), to=tmp_path, runs=1)
    assert measure.STAGES["bounds"].do(work) == 0
    assert {"quick-seeds-0-2", "quick-seeds-0-0-draw-1"} <= set(workplace)
    assert len(load_bounds(work.thresholds / "quick.toml")) == 27


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cells", "t5_sa_lora"], "--cells would replace the files of all cells; give --to DIR"),
        (["--seeds", "1"], "at least 2 seeds"),
        (["--seeds", "2", "--perturbed-seeds", "3"], "at least 2 seeds"),
        ([*ARGUMENTS, "DIR"], "is of other seeds or draws than its name says; remove it"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(workplace, tmp_path, capsys, arguments, sentence):
    save(grid_run(3))
    grid_run(3).path.rename(grid_run(2).path)
    with pytest.raises(SystemExit):
        calibrate.main([word.replace("DIR", str(tmp_path)) for word in arguments])
    assert sentence in capsys.readouterr().err
