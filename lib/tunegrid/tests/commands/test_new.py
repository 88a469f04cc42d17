"""Files that `tunegrid new` writes run at once; names are checked before anything is written."""

import csv
from pathlib import Path

import pytest

from tunegrid.commands import new
from tunegrid.grid.cells import STUDY_IDS, add_file, study
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.tests.outputs import refusal
from tunegrid.tests.sessions import TOO_SHORT, run


def write_starter(kind, name="mine"):
    assert new.main([kind, name]) == 0
    return Path(f"{name}.py").absolute()


@pytest.mark.parametrize(("split", "count"), [("train", 640), ("test", 160)])
def test_the_rows_of_a_task_have_two_labels(split, count):
    write_starter("task")
    rows = list(csv.DictReader(Path(f"mine/{split}.csv").read_text().splitlines()))
    assert len(rows) == count
    assert {row["label"] for row in rows} == {"positive", "negative"}


def run_starter(folder, *options):
    code, output, rows = run(folder, "-m", "quick", "--set", "max_steps=3", *options)
    assert code == TOO_SHORT, output
    [row] = rows
    assert row["status"] == "passed", output
    return row


@pytest.mark.parametrize(
    ("kind", "first_cell", "cell"),
    [
        ("task", "bert_mine_lora", "gpt2_mine_lora"),
        ("method", "bert_sum_mine", "t5_sa_mine"),
        ("backbone", "mine_sum_lora", "mine_sa_lora"),
    ],
)
def test_a_starter_adds_nine_quick_cells_and_runs_as_it_is_written(
    tmp_path, capsys, kind, first_cell, cell
):
    path = tmp_path / "to" / "mine.py"
    assert new.main([kind, "mine", f"--to={path.parent}"]) == 0
    assert f"tunegrid run -m quick --grid={path} --cells=" in capsys.readouterr().out
    grid = study()
    add_file(path, grid)
    added = [name for name in grid.ids(QUICK_PROFILE) if name not in STUDY_IDS]
    assert len(added) == 9
    assert added[0] == first_cell
    run_starter(tmp_path, f"--grid={path}", f"--cells={cell}")


def test_a_metric_and_an_instrument_run_as_they_are_written(tmp_path):
    grid_files = [write_starter("metric"), write_starter("instrument", "asked")]
    options = [f"--grid={path}" for path in grid_files]
    row = run_starter(tmp_path, *options, "--cells=bert_sa_lora", "--ask=asked")
    assert row["main_score"] == "mine"
    assert 0 <= row["scores"]["mine"] <= 100
    assert row["evaluation"]["metric_sources"]["mine"] == "own"
    assert list(row["instruments"]) == ["asked"]


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("method", "lora", "method 'lora' is in the grid already; give yours another NAME"),
        ("metric", "accuracy", "metric 'accuracy' is in the grid already"),
        ("metric", "note", "metric 'note' is in the grid already"),
        ("instrument", "calibration", "instrument 'calibration' is in the grid already"),
        ("backbone", "../x", "invalid NAME '../x'"),
        ("task", "json", "json.py would hide a module of Python's own"),
        ("task", "numpy", "numpy.py would hide the installed package"),
        ("task", "tunegrid", "tunegrid.py would hide the installed package"),
    ],
)
def test_a_name_that_is_taken_or_invalid_is_refused(tmp_path, capsys, kind, name, sentence):
    assert sentence in refusal(capsys, new.main, kind, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mine.py", "mine"])
@pytest.mark.parametrize("is_link", [True, False])
def test_nothing_that_is_there_is_replaced_and_nothing_is_written_through_a_link(
    tmp_path, capsys, name, is_link
):
    if is_link:
        Path(name).symlink_to("elsewhere")
    else:
        Path(name).write_text("")
    sentence = f"{name} is there already; give another NAME"
    assert sentence in refusal(capsys, new.main, "task", "mine")
    assert [path.name for path in tmp_path.rglob("*")] == [name]
