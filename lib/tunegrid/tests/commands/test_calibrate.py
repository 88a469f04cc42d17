"""`tunegrid calibrate` writes the bounds of a user's cells from the seeds that it trains."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tunegrid.commands import calibrate
from tunegrid.gate.noise import load_own_noise
from tunegrid.gate.thresholds import load_bounds
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import altered, complete, make_seeds, saved

GRID = """
from tunegrid.grid.methods import Lora

def pytest_tunegrid_grid(grid):
    grid.add_method(Lora(id="mine", name="mine", options={"use_dora": True}), like="lora")
"""
NO_CELL = """
def pytest_tunegrid_grid(grid):
    pass
"""
NO_FILE = """
from dataclasses import replace
from tunegrid.grid.tasks import SA

def pytest_tunegrid_grid(grid):
    grid.add_task(replace(SA, id="mail", files={"train": "no.csv"}), like="sa")
"""
CELLS = "--cells=bert_sa_mine --seeds=3"
BOUNDS = Path("mine.quick.toml")


@pytest.fixture(autouse=True)
def grid_file(working_folder, monkeypatch):
    monkeypatch.setattr(calibrate, "RUNS", Path("runs"))
    Path("mine.py").write_text(GRID)


def get_record(score=90.0, seed=0, **changes):
    parts = {
        "scores": {"accuracy": score, "f1_macro": score},
        "seeds": make_seeds(seed),
        "bounds": {},
    }
    return complete(cell="bert_sa_mine", method="mine", **parts | changes)


def session(*records):
    """A session of the suite that leaves these records; `run.arguments` are its arguments."""

    def run(arguments):
        run.arguments = arguments
        option, path = arguments[-1].split("=")
        assert option == "--benchmark-json"
        saved(Path(path), *records)
        return 1  # a bound of before was missed

    return run


def usage_error(arguments):
    return 4


def test_bounds_stand_beside_the_file_with_their_scores(capsys):
    scores = [88.0, 90.0, 92.0]
    run = session(*(get_record(score, seed) for seed, score in enumerate(scores)))
    assert calibrate.main(["--grid=mine.py", *CELLS.split(), "--", "-n", "2"], run) == 0
    # 15 test rows resolve half a row, 3.33 points: 4.72 at 90, where a point is 1.42 on the scale.
    # 2 % over two bounds is a t of 6.965 (2 degrees of freedom), times sqrt(4 / 3): 38.0 below the
    # place of 90, which is 120.9. There 54.7 points are.
    assert load_bounds(BOUNDS) == {"bert_sa_mine": {"accuracy": 54.6, "f1_macro": 54.6}}
    text = BOUNDS.read_text()
    assert "# Written by `tunegrid calibrate --grid=mine.py`." in text
    assert capsys.readouterr().out.startswith(text)
    [noise] = load_own_noise(BOUNDS)
    record = get_record()
    assert noise.applies_to(record)
    assert noise.scores["accuracy"] == scores
    assert not noise.applies_to(altered(record, "recipe.learning_rate", 0.5))
    assert {"--resume", "--seeds=0-2", "-n", "--cells=bert_sa_mine"} <= set(run.arguments)


def test_cells_are_those_that_the_file_adds_or_those_that_are_named():
    grid_files = [Path("mine.py")]
    assert len(calibrate.select_cells(grid_files, "quick", "")) == 9
    named = "t5_sa_mine, t5_sa_mine"
    assert calibrate.select_cells(grid_files, "full", named) == ("t5_sa_mine",)


UNLEARNED = get_record(
    audits=[{"name": "learned_something", "passed": False, "detail": "accuracy 51.2"}],
    status="audit",
    missed=["x"],
)


class Refusal(NamedTuple):
    """A calibration that ends with a sentence: its options, session, and grid file."""

    sentence: str
    options: str = ""
    run: object = usage_error
    grid: str = GRID


@pytest.mark.parametrize(
    "refused",
    [
        Refusal(
            "unknown cell 'bert_sa_min'; did you mean bert_sa_mine?", options="--cells=bert_sa_min"
        ),
        Refusal("one training has no standard deviation; give at least 2", options="--seeds=1"),
        Refusal("pytest ended with exit code 4: see its output above", options=CELLS),
        Refusal(
            "bert_sa_mine of seed 2 did not finish",
            options=CELLS,
            run=session(get_record(90.0, seed=0), get_record(91.0, seed=1)),
        ),
        Refusal(
            'accuracy 51.2; it may need more than 2 updates (quick={"max_steps": 300} in its task '
            "or recipe), another learning rate, or correct labels; change that",
            options="--cells=bert_sa_mine",
            run=session(UNLEARNED),
        ),
        Refusal("mine.py adds no cell of -m quick: write -m full, or name", grid=NO_CELL),
        Refusal("none of its files (no.csv) is beside the --grid file, in FOLDER", grid=NO_FILE),
    ],
    ids=lambda refused: refused.sentence[:40],
)
def test_what_cannot_be_calibrated_is_one_sentence(tmp_path, capsys, refused):
    Path("mine.py").write_text(refused.grid)
    main = partial(calibrate.main, run=refused.run)
    message = refusal(capsys, main, "--grid=mine.py", *refused.options.split())
    assert refused.sentence.replace("FOLDER", str(tmp_path)) in message
    assert not BOUNDS.exists()


def test_bounds_of_other_cells_are_not_lost(capsys):
    BOUNDS.write_text("[cells.t5_sa_mine]\naccuracy = { minimum = 80.0 }\n")
    message = refusal(capsys, calibrate.main, "--grid=mine.py", *CELLS.split())
    assert "has bounds of t5_sa_mine, which would be lost" in message
