"""`tunegrid calibrate` writes the bounds of a user's cells from the seeds that it trains."""

from functools import partial
from pathlib import Path

import pytest

from tunegrid.commands import calibrate
from tunegrid.commands.calibrate import main
from tunegrid.gate.noise import load_own_noise
from tunegrid.gate.thresholds import bounds_file, load_bounds
from tunegrid.tests.outputs import refusal
from tunegrid.tests.records import altered, complete, make_seeds, saved

GRID = """
from tunegrid.grid.methods import Lora

def pytest_tunegrid_grid(grid):
    grid.add_method(Lora(id="mine", name="mine", options={"use_dora": True}), like="lora")
"""
CELLS = ("--cells=bert_sa_mine", "--seeds=3")


@pytest.fixture
def grid_file(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "RUNS", tmp_path / "runs")
    path = tmp_path / "mine.py"
    path.write_text(GRID)
    return path


def session(*scores, asked=None):
    """A session that leaves a record with each of these accuracies, one per seed."""

    def run(arguments):
        path = next(
            word.partition("=")[2] for word in arguments if word.startswith("--benchmark-json=")
        )
        records = []
        for seed, score in enumerate(scores):
            changes = {
                "scores": {"accuracy": score, "f1_macro": score},
                "seeds": make_seeds(seed),
                "bounds": {},
            }
            records.append(complete(cell="bert_sa_mine", method="mine", **changes))
        saved(Path(path), *records)
        if asked is not None:
            asked.extend(arguments)
        return 1  # a bound of before was missed

    return run


def test_bounds_stand_beside_the_file_with_their_scores(grid_file, capsys):
    asked = []
    assert (
        main(
            [f"--grid={grid_file}", *CELLS, "--", "-n", "2"], session(88.0, 90.0, 92.0, asked=asked)
        )
        == 0
    )
    # 15 test rows resolve half a row, 3.33 points: 4.72 at 90, where a point is 1.42 on the scale.
    # 2 % over two bounds is a t of 6.965 (2 degrees of freedom), times sqrt(4 / 3): 38.0 below the
    # place of 90, which is 120.9. There 54.7 points are.
    assert load_bounds(bounds_file(grid_file, "quick")) == {
        "bert_sa_mine": {"accuracy": 54.6, "f1_macro": 54.6}
    }
    text = bounds_file(grid_file, "quick").read_text()
    assert "# Written by `tunegrid calibrate --grid=mine.py`." in text
    assert capsys.readouterr().out.startswith(text)
    record = complete(
        cell="bert_sa_mine", method="mine", scores={"accuracy": 90.0, "f1_macro": 90.0}
    )
    [noise] = load_own_noise(bounds_file(grid_file, "quick"))
    assert noise.applies_to(record)
    assert noise.scores["accuracy"] == [88.0, 90.0, 92.0]
    assert not noise.applies_to(altered(record, "recipe.learning_rate", 0.5))
    assert {"--resume", "--seeds=0-2", "-n", "--cells=bert_sa_mine"} <= set(asked)
    assert len(calibrate.select_cells([grid_file], "quick", "")) == 9
    assert calibrate.select_cells([grid_file], "full", "t5_sa_mine, t5_sa_mine") == ("t5_sa_mine",)


def test_a_seed_that_learned_nothing_gives_no_bound_and_the_way_to_more_updates(grid_file, capsys):
    unlearned = [{"name": "learned_something", "passed": False, "detail": "accuracy 51.2"}]
    record = complete(
        cell="bert_sa_mine",
        method="mine",
        audits=unlearned,
        status="audit",
        missed=["x"],
        bounds={},
    )

    def run(arguments):
        path = next(
            word.partition("=")[2] for word in arguments if word.startswith("--benchmark-json=")
        )
        saved(Path(path), record)
        return 1

    sentence = refusal(
        capsys, partial(main, run=run), f"--grid={grid_file}", "--cells=bert_sa_mine"
    )
    assert (
        'accuracy 51.2; it may need more than 2 updates (quick={"max_steps": 300} in its task or '
        "recipe), another learning rate, or correct labels; change that" in sentence
    )


def nothing(arguments):
    return 4


@pytest.mark.parametrize(
    ("arguments", "run", "sentence"),
    [
        (
            ["--cells=bert_sa_min"],
            nothing,
            "unknown cell 'bert_sa_min'; did you mean bert_sa_mine?",
        ),
        (["--seeds=1"], nothing, "one training has no standard deviation; give at least 2"),
        (CELLS, nothing, "pytest ended with exit code 4: see its output above"),
        (CELLS, session(90.0, 91.0), "bert_sa_mine of seed 2 did not finish"),
    ],
)
def test_what_cannot_be_calibrated_is_one_sentence(grid_file, arguments, run, sentence, capsys):
    assert sentence in refusal(capsys, partial(main, run=run), f"--grid={grid_file}", *arguments)
    assert not bounds_file(grid_file, "quick").exists()


def test_bounds_of_other_cells_are_not_lost_and_a_file_that_adds_no_cell_says_what_to_write(
    grid_file, capsys
):
    bounds_file(grid_file, "quick").write_text(
        "[cells.t5_sa_mine]\naccuracy = { minimum = 80.0 }\n"
    )
    assert "has bounds of t5_sa_mine, which would be lost" in refusal(
        capsys, main, f"--grid={grid_file}", *CELLS
    )
    grid_file.write_text("def pytest_tunegrid_grid(grid):\n    pass\n")
    assert "mine.py adds no cell of -m quick: write -m full, or name" in refusal(
        capsys, main, f"--grid={grid_file}"
    )
    grid_file.write_text(
        "from dataclasses import replace\nfrom tunegrid.grid.tasks import SA\n"
        "def pytest_tunegrid_grid(grid):\n"
        "    grid.add_task(replace(SA, id='mail', files={'train': 'no.csv'}), like='sa')\n"
    )
    assert f"none of its files (no.csv) is beside the --grid file, in {grid_file.parent}" in (
        refusal(capsys, main, f"--grid={grid_file}")
    )
