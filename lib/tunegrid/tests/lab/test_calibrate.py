"""Bounds, noise and tolerances as the lab derives them from runs, and how often healthy runs are
called.

Nothing trains.
"""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tunegrid.errors import InputError
from tunegrid.gate.bounds import Calibration, get_bound
from tunegrid.gate.noise import POINT_SCALE, Deviation, load_noise
from tunegrid.gate.thresholds import TOLERANCES, load_bounds, load_tolerances
from tunegrid.lab import calibrate, false_alarms
from tunegrid.lab.calibrate import noise_toml
from tunegrid.lab.tolerances import FLOORS, Apart, diffs, largest, make_tolerances, numerics_toml
from tunegrid.runs.files import load, save
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import (
    CELLS,
    MEASURED,
    altered,
    complete,
    make_seeds,
    saved,
    with_test_rows,
)

MANY = 1e6  # degrees of freedom: Student's t is normal


@pytest.mark.parametrize(
    ("scores", "sd", "df", "limits", "minimum"),
    [
        # 2 % over two bounds: the normal quantile of 99 % is 2.326; sd 3, two seeds: 3 * sqrt(1 + 1
        # / 2) = 3.674; 90 - 8.547
        ([89.0, 91.0], 3.0, MANY, {}, 81.4),
        # four degrees of freedom: 3.747 in place of 2.326; 90 - 13.77
        ([89.0, 91.0], 3.0, 4, {}, 76.2),
        # A seed lay 4 deviations below: 90 - 14.7
        ([89.0, 91.0], 3.0, MANY, {"tail": 4.0}, 75.3),
        ([90.0] * 3, 0.01, MANY, {}, 89.0),  # a point for other processors
        ([2.0, 4.0], 3.0, MANY, {}, 0.0),  # no less than nothing
        # two thirds of the way from 90 to 81 is 84, above the 81.4 that a healthy run needs
        ([89.0, 91.0], 3.0, MANY, {"control": 81.0}, 84.0),
        ([89.0, 91.0], 3.0, MANY, {"control": 30.0}, 81.4),
    ],
)
def test_a_bound_is_a_quantile_of_a_new_observation_below_the_mean(scores, sd, df, limits, minimum):
    assert get_bound(scores, Deviation(sd=sd, df=df), POINT_SCALE, bounds=2, **limits) == minimum


# Whole calibrations


def grid(seed, score=90.0, draw=None):
    """Every cell of the study, with one score for all, on a test set of 500 rows."""
    records = {}
    for cell_id, cell in CELLS.items():
        scores = dict.fromkeys(cell.task.bounded_scores, score)
        seeds = make_seeds(seed, draw)
        record = complete(cell_id, scores=scores, seeds=seeds, data=with_test_rows(500))
        if draw:  # No audit can say of a moved start that it is the checkpoint's.
            audits = [audit for audit in record.audits if audit.name != "checkpoint_loaded"]
            record = replace(record, audits=audits)
        records[cell_id] = record
    return records


def test_both_kinds_of_noise_are_measured(tmp_path):
    first = grid(0, 88.0)
    moved = [grid(0, 89.0, draw=1), grid(0, 90.0, draw=2)]
    calibration = Calibration(seeds=[first, grid(1, 92.0)], perturbed={0: [first, *moved]})
    path = tmp_path / "noise.toml"
    path.write_text(noise_toml(calibration))
    written = tomllib.loads(path.read_text())
    # 88 and 92 between seeds; 88, 89 and 90 at seed 0, its run without a draw among them
    assert written["cells"]["bert_qa_lora"]["f1"] == {
        "seeds": {"sd": 2.828, "df": 1, "scores": [[88.0, 92.0]]},
        "perturbed": {"sd": 1.0, "df": 2, "scores": [[88.0, 89.0, 90.0]]},
    }
    assert written["rows"] == {"sum": 500, "qa": 500, "sa": 500}
    assert written["evidence"]["seeds"] == [0, 1]
    assert written["evidence"]["perturbed_seeds"] == [0]
    # at 89, of 500 rows, a point is 50 / sqrt(89.1 * 11.1) = 1.59 on the scale
    noise = load_noise(path).find("perturbed", first["bert_qa_lora"], "f1")
    assert noise.sd == pytest.approx(1.59, abs=0.01)


# The command


def option_values(arguments):
    return dict(word.split("=", 1) for word in arguments if "=" in word)


def control_rows():
    """Two controls of each cell, of which one reaches its bounds."""
    rows = []
    for cell_id, cell in CELLS.items():
        for score in (20.0, 89.0):
            scores = dict.fromkeys(cell.task.bounded_scores, score)
            rows.append({"of": cell_id, "scores": scores})
    return rows


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    """The pytest sessions that the command started, as their arguments; none of them trains."""
    started = []

    def train(path, arguments):
        started.append(" ".join(arguments))
        options = option_values(arguments)
        if "--seeds" not in options:
            return saved(path, *control_rows())
        first, last = map(int, options["--seeds"].split("-"))
        draw = int(options.get("--set", "perturbation=0").removeprefix("perturbation="))
        records = []
        for seed in range(first, last + 1):
            records += grid(seed, 90.0 + seed % 10 + draw / 10, draw or None).values()
        return saved(path, *records)

    monkeypatch.setattr(calibrate, "train_session", train)
    monkeypatch.setattr(calibrate, "LAB_RUNS", tmp_path)
    return started


def test_the_command_trains_seeds_moved_starts_and_controls_and_writes_three_files(
    sessions, tmp_path, capsys
):
    options = f"--seeds 10000-10003 --moved-seeds 2 --draws 2 --to {tmp_path} -n 2".split()
    assert calibrate.main(options) == 0
    assert sessions == [
        "-m quick -n 2 --seeds=10000-10003",
        "-m quick -n 2 --seeds=10000-10001 --set=perturbation=1",
        "-m quick -n 2 --seeds=10000-10001 --set=perturbation=2",
        "-m controls and not zoo and not tasks -n 2",
    ]
    thresholds = tmp_path / "benchmarks" / "thresholds"
    noise = load_noise(thresholds / "noise.toml")
    assert noise.find("perturbed", grid(0)["t5_sa_sft"], "accuracy").df == 4
    assert len(load_bounds(thresholds / "quick.toml")) == 27
    bounds = tomllib.loads((thresholds / "quick.toml").read_text())
    assert bounds["evidence"]["seeds"] == [10000, 10001, 10002, 10003]
    # So many seeds tell bounds by noise alone
    assert "control" not in bounds["cells"]["t5_qa_sft"]["f1"]
    numerics = tomllib.loads((thresholds / "numerics.toml").read_text())
    assert numerics["evidence"]["pairs"] == 27 * 2 * 2
    assert load_tolerances(thresholds / "numerics.toml")["fp32"]["first"] == 1.5e-5
    assert "27 of 54 controls miss a bound" in capsys.readouterr().out
    controls = str(tmp_path / "quick-controls.json")
    assert calibrate.main([*options, "--controls", controls, "--write", "bounds,noise"]) == 0
    assert len(sessions) == 4 + 3  # without the controls


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "1"], "'1' is not a range of at least 2 seeds, as 0-4 is"),
        (["--profile", "zoo", "--write", "noise"], "--profile zoo writes no noise"),
        (["--controls", "pyproject.toml"], "holds no controls"),
        (["--draws", "0", "--write", "numerics"], "tolerances rest on moved starts"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(sessions, tmp_path, capsys, arguments, sentence):
    assert sentence in refusal(capsys, calibrate.main, *arguments, "--to", tmp_path)


def test_saved_runs_are_calibrated_without_a_session_and_the_last_file_counts(
    sessions, tmp_path, capsys
):
    first = saved(tmp_path / "1.json", *grid(0, 90.0).values(), *grid(1, 94.0).values())
    again = saved(tmp_path / "2.json", *grid(0, 92.0).values())
    moved = saved(tmp_path / "3.json", *grid(0, 93.0, draw=1).values())
    runs = ["--runs", str(first), str(again), str(moved)]
    options = f"--seeds 0-1 --moved-seeds 1 --draws 1 --to {tmp_path}".split()
    assert calibrate.main([*options, *runs]) == 0
    noise = tomllib.loads((tmp_path / "benchmarks" / "thresholds" / "noise.toml").read_text())
    accuracy = noise["cells"]["t5_sa_sft"]["accuracy"]
    assert accuracy["seeds"]["scores"] == [[92.0, 94.0]]
    assert accuracy["perturbed"]["scores"] == [[92.0, 93.0]]
    assert accuracy.keys() == {"seeds", "perturbed"}
    assert not sessions
    assert "no controls were given" in capsys.readouterr().out
    message = refusal(capsys, calibrate.main, "--seeds", "1-2", *runs)
    assert "bert_sum_lora of seed 2 did not finish" in message


# Healthy runs


def write_bound(tmp_path, minimum):
    """Writes a file of one bound, the accuracy of t5_sa_sft; returns its path."""
    path = tmp_path / "quick.toml"
    path.write_text(f"[cells.t5_sa_sft]\naccuracy = {{ minimum = {minimum} }}\n")
    return str(path)


def test_healthy_grids_that_anything_calls_are_counted(tmp_path, capsys):
    run = tmp_path / "healthy.json"
    save(load(false_alarms.BASELINE), run)
    assert false_alarms.main([str(run), "--bounds", write_bound(tmp_path, 99.9)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("healthy.json seed 0: t5_sa_sft accuracy ")
    assert lines[1] == "healthy.json seed 0: 1 missed, 0 worse, 0 not confirmed"
    assert lines[-1] == "5 of 5 healthy grids are red"


def test_each_seed_has_a_session_that_is_run_once_and_a_miss_counts_if_it_is_confirmed(
    tmp_path, monkeypatch, capsys
):
    cell = "t5_sa_sft"
    scores = {20_000: 96.0, 20_001: 90.0, 20_002: 90.0}
    second_scores = {20_001: 96.0, 20_002: 94.0}  # of the cell's second training run
    codes = [0, 2, 0, 1]  # the second session breaks off
    trained_seeds = []

    def run(words, output):
        options = option_values(words)
        seed = int(options["--seeds"])
        trained_seeds.append(seed)
        records = grid(seed) | {cell: grid(seed, scores[seed])[cell]}
        if seed in second_scores:
            second = grid(seed + 10_000, second_scores[seed])[cell]
            records["second"] = altered(second, "seeds.confirms", seed)
        saved(Path(options["--benchmark-json"]), *records.values())
        return codes.pop(0)

    monkeypatch.setattr(false_alarms.launcher, "run", run)
    baseline = saved(tmp_path / "baseline.json", *grid(1).values())
    arguments = ["--train", "20000-20002", "--to", str(tmp_path), "--baseline", str(baseline)]
    arguments += ["--bounds", write_bound(tmp_path, 95.0)]
    assert "pytest ended with exit code 2: see " in refusal(capsys, false_alarms.main, *arguments)
    capsys.readouterr()
    assert false_alarms.main(arguments) == 1
    assert trained_seeds == [20_000, 20_001, 20_001, 20_002]
    lines = capsys.readouterr().out.splitlines()
    counts = [line.partition(": exit code ")[2] for line in lines if "exit code" in line]
    assert counts == [
        "0, 0 missed, 0 worse, 0 not confirmed",
        "0, 0 missed, 0 worse, 1 not confirmed",
        "1, 1 missed, 0 worse, 0 not confirmed",
    ]
    assert lines[-2:] == ["before misses are confirmed: 2 of 3", "1 of 3 healthy grids are red"]


# Tolerances of numerics are what harmless changes did, doubled. No session is trained here.


def tolerances(figure, kind="nf4 fp32", **deviations):
    """The tolerances if cells of one kind deviate so far in a figure, and in no other."""
    pairs = [
        Apart(cell=cell, kind=kind, figures={figure: deviation})
        for cell, deviation in deviations.items()
    ]
    return make_tolerances(largest(pairs))


def test_a_cell_beyond_ten_times_the_median_has_a_tolerance_of_its_own():
    # the median of 1, 2, 3, 4 and 31 is 3: 31 lies beyond 30, so that 4 is the largest of the
    # others
    tables = tolerances("later", a=1e-3, b=2e-3, c=3e-3, d=4e-3, e=3.1e-2)
    assert tables["nf4 fp32"]["later"] == 8e-3
    assert tables["cell e"] == {"later": 6.2e-2}
    # within: wider for all
    tables = tolerances("later", a=1e-3, b=2e-3, c=3e-3, d=4e-3, e=2.9e-2)
    assert tables.keys() == {"nf4 fp32"}
    assert tables["nf4 fp32"]["later"] == 5.8e-2
    # A lone cell is never far beyond
    tables = tolerances("later", kind="bf16", a=0.5)
    assert tables.keys() == {"bf16"}
    assert tables["bf16"]["later"] == 1.0


def test_each_cell_has_its_own_curve_and_cells_that_were_not_measured_have_the_largest():
    tables = tolerances("curve", a=9e-3, b=4e-3, c=1e-5)
    # three times; the last is the floor
    curve = {"nf4 fp32": 2.7e-2, "cell a": 2.7e-2, "cell b": 1.2e-2, "cell c": 2e-3}
    assert {name: table["curve"] for name, table in tables.items()} == curve


def record(cell="bert_sa_lora", move=0.0):
    """A finished record of three updates, whose first loss is moved so far."""
    training = MEASURED["training"] | {"losses": [0.75 + move, 0.5, 0.25], "updates": 3}
    return complete(cell, training=training)


def test_two_trainings_lie_apart_by_all_figures_of_numerics():
    old = record()
    new = altered(record(move=0.125), "training.first_step.decoded", 5e-6)
    apart = diffs(old, new)
    assert apart.cell == "bert_sa_lora"
    assert apart.kind == "fp32"
    assert apart.figures["first"] == 0.125
    assert apart.figures["decoded"] == pytest.approx(4e-6)  # 1e-6 in a complete record
    # Three updates are one mean; the mean loss is 0.5
    assert apart.figures["curve"] == pytest.approx(0.125 / 3 / 0.5)
    # Only if the sessions kept their files
    of_files = {"rows", "module_outputs", "module_gradients"}
    assert apart.figures.keys() | {"moved_alone"} | of_files == FLOORS.keys()
    unsearched = altered(new, "training.first_step.decoded", None)
    assert "decoded" not in diffs(old, unsearched).figures


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("losses", [0.75, None, 0.25], "of seed 0 has a loss that is not finite"),
        ("first_step.weights", {"head": None}, "has weights in only one of two trainings"),
    ],
)
def test_trainings_that_are_not_healthy_give_no_tolerances(place, value, sentence):
    with pytest.raises(InputError, match=f"bert_sa_lora {sentence}"):
        diffs(record(), altered(record(), f"training.{place}", value))


def two_cells(move):
    """Records whose first loss is moved so far, in QLoRA twice as far."""
    return {
        "bert_sa_lora": record("bert_sa_lora", move),
        "bert_sa_qlora": record("bert_sa_qlora", 2 * move),
    }


def test_the_file_is_read_again_and_holds_its_evidence(tmp_path):
    path = tmp_path / "numerics.toml"
    runs = {}
    for seed in (0, 1):
        runs[seed] = [two_cells(seed + draw / 1024) for draw in (0, 1, 2)]
    path.write_text(numerics_toml(runs))
    tables = load_tolerances(path)
    # the farthest is draw 2: 2 / 1024 = 1.953e-3, of QLoRA 4 / 1024 = 3.906e-3; doubled 3.906e-3
    # and 7.813e-3
    assert tables["fp32"]["first"] == 4e-3
    assert tables["nf4 fp32"]["first"] == 7.9e-3
    written = tomllib.loads(path.read_text())
    evidence = written["evidence"]
    assert evidence["pairs"] == 8
    assert evidence["seeds"] == [0, 1]
    assert evidence["draws"] == [1, 2]
    assert evidence["largest"]["fp32"]["first"] == 1.95e-3
    assert evidence["versions"].keys() >= {"torch", "transformers", "peft"}
    # what an older version measured is kept, and so is the head
    present = TOLERANCES.read_text()
    for name, table in tomllib.loads(present).items():
        assert written.get(name, {}).get("moved_alone") == table.get("moved_alone")
    assert path.read_text().partition("\n\n")[0] == present.partition("\n\n")[0]
