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
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.tasks import TASKS
from tunegrid.lab import calibrate, false_alarms
from tunegrid.lab.calibrate import noise_toml
from tunegrid.lab.tolerances import FLOORS, Apart, diffs, largest, make_tolerances, numerics_toml
from tunegrid.runs.files import load, save
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import altered, complete, make_seeds, saved

MANY = 1e6  # degrees of freedom: Student's t is normal


@pytest.mark.parametrize(
    ("scores", "deviation", "narrowed", "minimum"),
    [
        # 2 % over two bounds: the normal quantile of 99 % is 2.326; sd 3, two seeds: 3 * sqrt(1 + 1
        # / 2) = 3.674; 90 - 8.547
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, {}, 81.4),
        # four degrees of freedom: 3.747 in place of 2.326; 90 - 13.77
        ([89.0, 91.0], {"sd": 3.0, "df": 4}, {}, 76.2),
        # A seed lay 4 deviations below: 90 - 14.7
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, {"tail": 4.0}, 75.3),
        ([90.0] * 3, {"sd": 0.01, "df": MANY}, {}, 89.0),  # a point for other processors
        ([2.0, 4.0], {"sd": 3.0, "df": MANY}, {}, 0.0),  # no less than nothing
        # two thirds of the way from 90 to 81 is 84, above the 81.4 that a healthy run needs
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, {"control": 81.0}, 84.0),
        ([89.0, 91.0], {"sd": 3.0, "df": MANY}, {"control": 30.0}, 81.4),
    ],
)
def test_a_bound_is_a_quantile_of_a_new_observation_below_the_mean(
    scores, deviation, narrowed, minimum
):
    assert get_bound(scores, Deviation(**deviation), POINT_SCALE, bounds=2, **narrowed) == minimum


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
            seeds=make_seeds(seed, draw),
        )
        # No audit can say of a moved start that it is the checkpoint's.
        audits = [
            finding for finding in record.audits if not draw or finding.name != "checkpoint_loaded"
        ]
        records[cell] = altered(
            altered(record, "audits", audits), "data.rows", record.data.rows | {"test": 500}
        )
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
    # at 89, of 500 rows, a point is 50 / sqrt(89.1 * 11.1) = 1.59 on the scale
    assert load_noise(path).find("perturbed", grid(0)["bert_qa_lora"], "f1").sd == pytest.approx(
        1.59, abs=0.01
    )


# The command


@pytest.fixture
def sessions(monkeypatch):
    """What the command's sessions of pytest would train is noted and made up."""
    started = []

    def trained(path, arguments):
        options = dict(word.split("=", 1) for word in arguments if "=" in word)
        started.append((arguments[1], options))
        if "--seeds" not in options:
            of = {
                cell: dict.fromkeys(record.bounded_scores, 20.0) for cell, record in grid(0).items()
            }
            rows = [
                {"plant": "learning_rate_0", "of": cell, "scores": scores}
                for cell, scores in of.items()
            ]
            rows += [
                row | {"plant": "adapter_off", "scores": dict.fromkeys(row["scores"], 89.0)}
                for row in rows
            ]
            return saved(path, *rows)
        first, last = map(int, options["--seeds"].split("-"))
        draw = int(options["--set"].rpartition("=")[2]) if "--set" in options else None
        grids = [
            grid(seed, 90.0 + seed % 10 + (draw or 0) / 10, draw) for seed in range(first, last + 1)
        ]
        return saved(path, *(record for own in grids for record in own.values()))

    monkeypatch.setattr(calibrate, "train_session", trained)
    return started


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "LAB_RUNS", tmp_path)


def test_the_command_trains_seeds_moved_starts_and_controls_and_writes_three_files(
    sessions, tmp_path, capsys
):
    arguments = [
        "--seeds",
        "10000-10003",
        "--moved-seeds",
        "2",
        "--draws",
        "2",
        "--to",
        str(tmp_path),
    ]
    assert calibrate.main(arguments) == 0
    seeds, moved = {"--seeds": "10000-10003"}, {"--seeds": "10000-10001"}
    draws = [("quick", moved | {"--set": f"perturbation={draw}"}) for draw in (1, 2)]
    assert sessions == [("quick", seeds), *draws, ("controls and not zoo and not tasks", {})]
    thresholds = tmp_path / "benchmarks" / "thresholds"
    assert (
        load_noise(thresholds / "noise.toml").find("perturbed", grid(0)["t5_sa_sft"], "accuracy").df
        == 4
    )
    assert len(load_bounds(thresholds / "quick.toml")) == 27
    written = tomllib.loads((thresholds / "quick.toml").read_text())
    assert written["evidence"]["seeds"] == [10000, 10001, 10002, 10003]
    # So many seeds tell bounds by noise alone
    assert "control" not in written["cells"]["t5_qa_sft"]["f1"]
    assert (
        tomllib.loads((thresholds / "numerics.toml").read_text())["evidence"]["pairs"] == 27 * 2 * 2
    )
    assert load_tolerances(thresholds / "numerics.toml")["fp32"]["first"] == 1.5e-5
    assert "27 of 54 controls miss a bound" in capsys.readouterr().out
    controls = str(tmp_path / "quick-controls.json")
    assert calibrate.main([*arguments, "--controls", controls, "--write", "bounds,noise"]) == 0
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
    assert sentence in refusal(capsys, calibrate.main, *arguments, "--to", str(tmp_path))


def test_saved_runs_are_calibrated_without_a_session_and_the_last_file_counts(
    sessions, tmp_path, capsys
):
    runs = {"seeds": [(0, 90.0), (1, 94.0)], "again": [(0, 92.0)], "moved": [(0, 93.0, 1)]}
    for name, grids in runs.items():
        saved(
            tmp_path / f"{name}.json", *(record for one in grids for record in grid(*one).values())
        )
    paths = [str(tmp_path / f"{name}.json") for name in runs]
    options = [
        "--seeds",
        "0-1",
        "--moved-seeds",
        "1",
        "--draws",
        "1",
        "--to",
        str(tmp_path),
        "--write",
        "bounds,noise,numerics",
    ]
    assert calibrate.main([*options, "--runs", *paths]) == 0
    written = tomllib.loads((tmp_path / "benchmarks" / "thresholds" / "noise.toml").read_text())[
        "cells"
    ]
    assert {kind: own["scores"] for kind, own in written["t5_sa_sft"]["accuracy"].items()} == {
        "seeds": [[92.0, 94.0]],
        "perturbed": [[92.0, 93.0]],
    }
    assert not sessions
    assert "no controls were given" in capsys.readouterr().out
    assert "bert_sum_lora of seed 2 did not finish" in refusal(
        capsys, calibrate.main, "--seeds", "1-2", "--runs", *paths
    )


# Healthy runs


def test_healthy_grids_that_anything_calls_are_counted(tmp_path, capsys):
    save(load(false_alarms.BASELINE), tmp_path / "healthy.json")
    bounds = tmp_path / "quick.toml"
    bounds.write_text("[cells.t5_sa_sft]\naccuracy = { minimum = 99.9 }\n")
    arguments = [str(tmp_path / "healthy.json"), "--bounds", str(bounds)]
    assert false_alarms.main(arguments) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("healthy.json seed 0: t5_sa_sft accuracy ")
    assert said[1] == "healthy.json seed 0: 1 missed, 0 worse, 0 not confirmed"
    assert said[-1] == "5 of 5 healthy grids are red"


def test_each_seed_has_a_session_that_is_run_once_and_a_miss_counts_if_it_is_confirmed(
    tmp_path, monkeypatch, capsys
):
    # Scores of one cell, and of its second training run
    scores = {20_000: (96.0, None), 20_001: (90.0, 96.0), 20_002: (90.0, 94.0)}
    cell, codes, trained = "t5_sa_sft", [0, 2], []

    def run(words, output):
        options = dict(
            word.split("=", 1) for word in words if word.startswith("--") and "=" in word
        )
        seed = int(options["--seeds"])
        trained.append(seed)
        first, second = scores[seed]
        cells = grid(seed) | {cell: grid(seed, first)[cell]}
        again = altered(grid(seed + 10_000, second)[cell], "seeds.confirms", seed)
        saved(Path(options["--benchmark-json"]), *cells.values(), *([again] if second else []))
        return codes.pop(0)

    monkeypatch.setattr(false_alarms.launcher, "run", run)
    bounds = tmp_path / "quick.toml"
    bounds.write_text(f"[cells.{cell}]\naccuracy = {{ minimum = 95.0 }}\n")
    saved(tmp_path / "baseline.json", *grid(1).values())
    of = {
        "--train": "20000-20002",
        "--to": tmp_path,
        "--bounds": bounds,
        "--baseline": tmp_path / "baseline.json",
    }
    arguments = [str(word) for option in of.items() for word in option]
    assert "pytest ended with exit code 2: see " in refusal(capsys, false_alarms.main, *arguments)
    codes += [0, 1]
    capsys.readouterr()
    assert false_alarms.main(arguments) == 1
    assert trained == [20_000, 20_001, 20_001, 20_002]
    said = capsys.readouterr().out.splitlines()
    counts = [line.partition(": exit code ")[2] for line in said if "exit code" in line]
    assert counts == [
        "0, 0 missed, 0 worse, 0 not confirmed",
        "0, 0 missed, 0 worse, 1 not confirmed",
        "1, 1 missed, 0 worse, 0 not confirmed",
    ]
    assert said[-2:] == ["before misses are confirmed: 2 of 3", "1 of 3 healthy grids are red"]


# Tolerances of numerics are what harmless changes did, doubled. No session is trained here.

LOSSES = [0.75, 0.5, 0.25]


def later(deviations, kind="nf4 fp32"):
    """Cells a, b, c ... whose later losses lie so far apart."""
    return [
        Apart(cell=cell, kind=kind, figures={"later": value})
        for cell, value in zip("abcdef", deviations, strict=False)
    ]


# The rule


def test_a_cell_beyond_ten_times_the_median_has_a_tolerance_of_its_own():
    # the median of 1, 2, 3, 4 and 31 is 3: 31 lies beyond 30, so that 4 is the largest of the
    # others
    tables = make_tolerances(largest(later([1e-3, 2e-3, 3e-3, 4e-3, 3.1e-2])))
    assert tables["nf4 fp32"]["later"] == 8e-3
    assert tables["cell e"] == {"later": 6.2e-2}
    # within: wider for all
    tables = make_tolerances(largest(later([1e-3, 2e-3, 3e-3, 4e-3, 2.9e-2])))
    assert tables.keys() == {"nf4 fp32"}
    assert tables["nf4 fp32"]["later"] == 5.8e-2
    # A lone cell is never far beyond
    assert largest(later([0.5], "bf16")) == {"bf16": {"later": 0.5}}


# Two records


def record(cell="bert_sa_lora", seed=0, draw=None, by=0.0):
    """A finished record whose first loss lies so far off."""
    made = complete(cell, seeds=make_seeds(seed, draw))
    losses = [LOSSES[0] + by, *LOSSES[1:]]
    return replace(made, training=replace(made.training, losses=losses, updates=len(losses)))


def test_two_trainings_lie_apart_by_all_figures_of_numerics():
    old, new = record(), altered(record(by=0.125), "training.first_step.decoded", 5e-6)
    found = diffs(old, new)
    assert (found.cell, found.kind) == ("bert_sa_lora", "fp32")
    assert found.figures["first"] == 0.125
    assert found.figures["decoded"] == pytest.approx(4e-6)  # 1e-6 in a complete record
    # Three updates are one mean; the mean loss is 0.5
    assert found.figures["curve"] == pytest.approx(0.125 / 3 / 0.5)
    # Only if the sessions kept their files
    of_files = {"rows", "module_outputs", "module_gradients"}
    assert found.figures.keys() | {"moved_alone"} | of_files == FLOORS.keys()
    none = altered(new, "training.first_step.decoded", None)  # no model searched
    assert "decoded" not in diffs(old, none).figures


def test_what_calibrates_nothing_is_refused():
    broken = record()
    broken.training.losses[1] = None
    with pytest.raises(InputError, match="bert_sa_lora of seed 0 has a loss that is not finite"):
        diffs(record(), broken)
    with pytest.raises(InputError, match="bert_sa_lora has weights in only one of two trainings"):
        diffs(record(), altered(record(), "training.first_step.weights", {"head": None}))
    with pytest.raises(InputError, match="tolerances rest on moved starts"):
        numerics_toml({0: [{"bert_sa_lora": record()}]})


def curves(**deviations):
    return [
        Apart(cell=cell, kind="nf4 fp32", figures={"curve": value})
        for cell, value in deviations.items()
    ]


def test_each_cell_has_its_own_curve_and_cells_that_were_not_measured_have_the_largest():
    tables = make_tolerances(largest(curves(a=9e-3, b=4e-3, c=1e-5)))
    # three times; the last is the floor
    curve = {"nf4 fp32": 2.7e-2, "cell a": 2.7e-2, "cell b": 1.2e-2, "cell c": 2e-3}
    assert {name: table["curve"] for name, table in tables.items()} == curve


# The file


CELLS = ("bert_sa_lora", "bert_sa_qlora")


def two_cells(seed, draw=None):
    """Draw D moves the first loss by D x 2**-10, in QLoRA twice as far."""
    moved = (draw or 0) * 2.0**-10
    return {
        cell: record(cell, seed, draw, seed + moved * (1 + CELLS.index(cell))) for cell in CELLS
    }


def test_the_file_is_read_again_and_holds_its_evidence(tmp_path):
    path, present = tmp_path / "numerics.toml", TOLERANCES.read_text()
    path.write_text(
        numerics_toml(
            {seed: [two_cells(seed), two_cells(seed, 1), two_cells(seed, 2)] for seed in (0, 1)}
        )
    )
    tables, written, kept = (
        load_tolerances(path),
        tomllib.loads(path.read_text()),
        tomllib.loads(present),
    )
    # the farthest is draw 2: 2 / 1024 = 1.953e-3, of QLoRA 4 / 1024 = 3.906e-3; doubled 3.906e-3
    # and 7.813e-3
    assert (tables["fp32"]["first"], tables["nf4 fp32"]["first"]) == (4e-3, 7.9e-3)
    evidence = written["evidence"]
    assert (evidence["pairs"], evidence["seeds"], evidence["draws"]) == (8, [0, 1], [1, 2])
    assert evidence["largest"]["fp32"]["first"] == 1.95e-3
    assert evidence["versions"].keys() >= {"torch", "transformers", "peft"}
    # what an older version measured is kept, and so is the head
    for name, table in kept.items():
        assert written.get(name, {}).get("moved_alone") == table.get("moved_alone")
    assert path.read_text().partition("\n\n")[0] == present.partition("\n\n")[0]
