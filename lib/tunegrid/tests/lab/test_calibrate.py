"""Bounds and noise as the lab derives them from runs, and healthy runs that are judged. No session is trained here."""

import tomllib

import pytest

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.tasks import TASKS
from tunegrid.lab import calibrate, false_alarms
from tunegrid.lab.calibrate import noise_toml
from tunegrid.results.bounds import Calibration, bound_of
from tunegrid.results.files import load, save
from tunegrid.results.noise import Deviation, load_noise
from tunegrid.results.thresholds import load_bounds, load_tolerances
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import altered, complete, saved, seeds_as

MANY = 1e6  # degrees of freedom: Student's t is normal


@pytest.mark.parametrize(
    ("scores", "deviation", "control", "minimum"),
    [
        # 2 % over two bounds: the normal quantile of 99 % is 2.326; sd 3, two seeds: 3 * sqrt(1 + 1 / 2) = 3.674; 90 - 8.547
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, None, 81.4),
        # four degrees of freedom: 3.747 in place of 2.326; 90 - 13.77
        ([89.0, 91.0], {"sd": 3.0, "df": 4}, None, 76.2),
        ([90.0] * 3, {"sd": 0.01, "df": MANY}, None, 89.0),  # a point for other processors
        ([2.0, 4.0], {"sd": 3.0, "df": MANY}, None, 0.0),  # no less than nothing
        # two thirds of the way from 90 to 81 is 84, above the 81.4 that a healthy run needs
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, 81.0, 84.0),
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, 30.0, 81.4),
    ],
)
def test_a_bound_is_a_quantile_of_a_new_observation_below_the_mean(scores, deviation, control, minimum):
    assert bound_of(scores, Deviation(**deviation), 2, control) == minimum


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


def calibration(controls=None):
    """Seeds 0 and 1, and two draws of seed 0."""
    first = [grid(0, 88.0), grid(1, 92.0)]
    moved = {0: [first[0], *(grid(0, 88.0 + draw, draw) for draw in (1, 2))]}
    return Calibration(seeds=first, perturbed=moved, controls=controls or {})


def test_both_kinds_of_noise_are_measured(tmp_path):
    path = tmp_path / "noise.toml"
    path.write_text(noise_toml(calibration()))
    written = tomllib.loads(path.read_text())
    # 88 and 92 between seeds; 88, 89 and 90 at seed 0, its run without a draw among them
    assert written["cells"]["bert_qa_lora"]["f1"] == {
        "seeds": {"sd": 2.828, "df": 1, "scores": [[88.0, 92.0]]},
        "perturbed": {"sd": 1.0, "df": 2, "scores": [[88.0, 89.0, 90.0]]},
    }
    assert written["rows"] == {"sum": 500, "qa": 500, "sa": 500}
    assert (written["evidence"]["seeds"], written["evidence"]["perturbed_seeds"]) == ([0, 1], [0])
    assert load_noise(path).of("perturbed", grid(0)["bert_qa_lora"], "f1").sd == pytest.approx(1.0, rel=0.2)


# The command


@pytest.fixture
def sessions(monkeypatch):
    """What the command's sessions of pytest would train is noted and made up."""
    started = []

    def trained(path, arguments):
        options = dict(word.split("=", 1) for word in arguments if "=" in word)
        started.append((arguments[1], options))
        if "--seeds" not in options:
            of = {cell: dict.fromkeys(record.bounded_scores, 20.0) for cell, record in grid(0).items()}
            rows = [{"plant": "learning_rate_0", "of": cell, "scores": scores} for cell, scores in of.items()]
            rows += [row | {"plant": "adapter_off", "scores": dict.fromkeys(row["scores"], 89.0)} for row in rows]
            return saved(path, *rows)
        first, last = map(int, options["--seeds"].split("-"))
        draw = int(options["--set"].rpartition("=")[2]) if "--set" in options else None
        grids = [grid(seed, 90.0 + seed % 10 + (draw or 0) / 10, draw) for seed in range(first, last + 1)]
        return saved(path, *(record for own in grids for record in own.values()))

    monkeypatch.setattr(calibrate, "trained", trained)
    return started


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "RUNS", tmp_path)


def test_the_command_trains_seeds_moved_starts_and_controls_and_writes_three_files(sessions, tmp_path, capsys):
    arguments = ["--seeds", "10000-10003", "--moved-seeds", "2", "--draws", "2", "--to", str(tmp_path)]
    assert calibrate.main(arguments) == 0
    seeds, moved = {"--seeds": "10000-10003"}, {"--seeds": "10000-10001"}
    draws = [("quick", moved | {"--set": f"perturbation={draw}"}) for draw in (1, 2)]
    assert sessions == [("quick", seeds), *draws, ("controls and not zoo and not tasks", {})]
    thresholds = tmp_path / "benchmarks" / "thresholds"
    assert load_noise(thresholds / "noise.toml").of("perturbed", grid(0)["t5_sa_sft"], "accuracy").df == 4
    assert len(load_bounds(thresholds / "quick.toml")) == 27
    written = tomllib.loads((thresholds / "quick.toml").read_text())
    assert written["evidence"]["seeds"] == [10000, 10001, 10002, 10003]
    assert "control" not in written["cells"]["t5_qa_sft"]["f1"]  # so many seeds tell bounds by noise alone
    assert tomllib.loads((thresholds / "numerics.toml").read_text())["evidence"]["pairs"] == 27 * 2 * 2
    assert load_tolerances(thresholds / "numerics.toml")["fp32"]["first"] == 1.5e-5
    assert "27 of 54 controls miss a bound" in capsys.readouterr().out
    controls = str(tmp_path / "quick-controls.json")
    assert calibrate.main([*arguments, "--controls", controls, "--write", "bounds,noise"]) == 0
    assert len(sessions) == 4 + 3  # without the controls


def test_the_zoo_gets_bounds_alone(sessions, tmp_path):
    assert calibrate.main(["--profile", "zoo", "--to", str(tmp_path)]) == 0
    assert sessions == [("zoo", {"--seeds": "0-4"}), ("controls and zoo", {})]
    assert [path.name for path in (tmp_path / "benchmarks" / "thresholds").iterdir()] == ["zoo.toml"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cells", "t5_sa_lora"], "--cells would replace the files of all cells; give --to DIR"),
        (["--seeds", "1"], "'1' is not a range of at least 2 seeds, as 0-19 is"),
        (["--profile", "zoo", "--write", "noise"], "--profile zoo writes no noise"),
        (["--controls", "pyproject.toml"], "holds no controls"),
        (["--draws", "0", "--write", "numerics"], "tolerances rest on moved starts"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(sessions, tmp_path, capsys, arguments, sentence):
    to = [] if "--cells" in arguments else ["--to", str(tmp_path)]
    assert sentence in refusal(capsys, calibrate.main, *arguments, *to)


def test_healthy_grids_that_anything_calls_are_counted(tmp_path, capsys):
    baseline = load(false_alarms.BASELINE)
    path = tmp_path / "healthy.json"
    save(baseline, path)
    assert false_alarms.main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 5 healthy grids are red"
    bounds = tmp_path / "quick.toml"
    bounds.write_text("[cells.t5_sa_sft]\naccuracy = { minimum = 99.9 }\n")
    assert false_alarms.main([str(path), "--bounds", str(bounds)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("healthy.json seed 0: t5_sa_sft accuracy ")
    assert said[-1] == "5 of 5 healthy grids are red"
