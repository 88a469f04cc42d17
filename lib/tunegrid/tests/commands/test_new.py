"""What `tunegrid new` writes runs at once, as it is; names are checked before anything is
written.
"""

import csv

import pytest

from tunegrid.commands import new
from tunegrid.grid.cells import STUDY_IDS, add_file, study
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.tests.outputs import refusal
from tunegrid.tests.sessions import TOO_SHORT, run


@pytest.fixture
def written(tmp_path, capsys):
    """Writes a starter, and returns its path."""

    def write(kind):
        assert new.main([kind, "mine", f"--to={tmp_path / 'to'}"]) == 0
        assert (
            f"tunegrid run -m quick --grid={tmp_path / 'to' / 'mine'}.py --cells="
            in capsys.readouterr().out
        )
        return tmp_path / "to" / "mine.py"

    return write


@pytest.mark.parametrize(
    ("kind", "first"),
    [("task", "bert_mine_lora"), ("method", "bert_sum_mine"), ("backbone", "mine_sum_lora")],
)
def test_a_starter_adds_nine_quick_cells(written, kind, first):
    grid = study()
    path = written(kind)
    add_file(path, grid)
    added = [name for name in grid.ids(QUICK_PROFILE) if name not in STUDY_IDS]
    assert len(added) == 9
    assert added[0] == first


@pytest.mark.parametrize(("split", "count"), [("train", 640), ("test", 160)])
def test_the_rows_of_a_task_have_two_labels(written, split, count):
    path = written("task").parent / "mine" / f"{split}.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == count
    assert {row["label"] for row in rows} == {"positive", "negative"}


def run_starter(path, folder, *options):
    code, output, rows = run(
        folder, "-m", "quick", f"--grid={path}", "--set", "max_steps=3", *options, timeout=300
    )
    assert code == TOO_SHORT, output
    assert [row["status"] for row in rows] == ["passed"], output
    return rows[0]


@pytest.mark.parametrize(
    ("kind", "cell"),
    [("task", "gpt2_mine_lora"), ("method", "t5_sa_mine"), ("backbone", "mine_sa_lora")],
)
def test_a_starter_runs_as_it_is_written(written, tmp_path, kind, cell):
    run_starter(written(kind), tmp_path, f"--cells={cell}")


def test_a_metric_and_an_instrument_run_as_they_are_written(tmp_path):
    for kind, name in (("metric", "mine"), ("instrument", "asked")):
        assert new.main([kind, name, f"--to={tmp_path}"]) == 0
    row = run_starter(
        tmp_path / "mine.py",
        tmp_path,
        f"--grid={tmp_path / 'asked.py'}",
        "--cells=bert_sa_lora",
        "--ask=asked",
    )
    assert row["main_score"] == "mine"
    assert 0 <= row["scores"]["mine"] <= 100
    assert row["evaluation"]["metric_sources"]["mine"] == "own"
    assert list(row["instruments"]) == ["asked"]


@pytest.mark.parametrize(
    ("kind", "name"), [("metric", "accuracy"), ("metric", "note"), ("instrument", "calibration")]
)
def test_a_metric_or_an_instrument_gets_no_name_of_the_suite(kind, name, tmp_path, capsys):
    assert f"{kind} '{name}' is in the grid already" in refusal(
        capsys, new.main, kind, name, f"--to={tmp_path}"
    )


@pytest.mark.parametrize("place", ["mine.py", "mine"])
@pytest.mark.parametrize("is_link", [True, False])
def test_nothing_that_is_there_is_replaced_and_nothing_is_written_through_a_link(
    place, is_link, tmp_path, capsys
):
    if is_link:
        (tmp_path / place).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / place).write_text("")
    assert f"{place} is there already; give another NAME" in refusal(
        capsys, new.main, "task", "mine", f"--to={tmp_path}"
    )
    assert [path.name for path in tmp_path.rglob("*")] == [place]


@pytest.mark.parametrize("name", ["numpy", "tunegrid"])
def test_a_name_that_would_hide_an_installed_package_is_refused(name, tmp_path, capsys):
    assert f"{name}.py would hide the installed package" in refusal(
        capsys, new.main, "task", name, f"--to={tmp_path}"
    )
    assert not list(tmp_path.iterdir())
