"""What `tunegrid new` writes runs at once, as it is."""

import pytest

from tunegrid.commands import new
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS, add_from, study
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.tests.outputs import refusal
from tunegrid.tests.sessions import run


@pytest.fixture
def written(tmp_path, capsys):
    """Writes a starter, and returns its path."""

    def write(kind, name="mine"):
        assert new.main([kind, name, f"--to={tmp_path}"]) == 0
        assert f"tunegrid run -m quick --grid={tmp_path / name}.py --cells=" in capsys.readouterr().out
        return tmp_path / f"{name}.py"

    return write


@pytest.mark.parametrize(
    ("kind", "first"), [("task", "bert_mine_lora"), ("method", "bert_sum_mine"), ("backbone", "mine_sum_lora")]
)
def test_a_starter_adds_nine_quick_cells(written, kind, first):
    grid = study()
    add_from(written(kind), grid)
    added = [name for name in grid.ids(QUICK_PROFILE) if name not in STUDY_IDS]
    assert (len(added), added[0]) == (9, first)


@pytest.mark.parametrize(("kind", "cell"), [("task", "gpt2_mine_lora"), ("method", "t5_sa_mine"), ("backbone", "mine_sa_lora")])
@pytest.mark.slow
def test_a_starter_runs_as_it_is_written(written, tmp_path, kind, cell):
    how = ("-m", "quick", f"--grid={written(kind)}", f"--cells={cell}", "--set", "max_steps=3")
    code, output, rows = run(tmp_path, *how, timeout=300)
    assert (code, [row["status"] for row in rows]) == (0, ["passed"]), output


def test_made_up_rows_are_all_different_and_nothing_that_is_there_is_replaced(written, tmp_path):
    rows = new.rows()
    texts = [text for own in rows.values() for text, _ in own]
    assert (len(texts), len(set(texts)), new.rows()) == (800, 800, rows)
    assert 60 < sum(label == "positive" for _, label in rows["test"]) < 100
    path = written("method")
    with pytest.raises(InputError, match=r"mine.py is there already; give another NAME or --to=DIR"):
        new.write(new.files("task", "mine", tmp_path))
    assert (path.is_file(), (tmp_path / "mine").exists()) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["task", "my_task"], "invalid NAME 'my_task': expected lower-case letters and digits"),
        (["method", "lora"], "method 'lora' is in the grid already; give yours another NAME"),
        (["backbone", "../x"], "invalid NAME '../x'"),
        (["method", "m" * 300], "and 40 at most"),
        (["method", "lambda"], "lambda is a keyword: give another NAME"),
        (["task", "json"], "json.py would hide a module of Python's own"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(arguments, sentence, tmp_path, capsys):
    assert sentence in refusal(capsys, new.main, *arguments, f"--to={tmp_path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["mine.py", "mine"])
def test_nothing_is_written_through_a_link(link, tmp_path):
    elsewhere, to = tmp_path / "elsewhere", tmp_path / "to"
    to.mkdir()
    if link == "mine":
        elsewhere.mkdir()
    (to / link).symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"mine(.py)? is there already"):
        new.write(new.files("task", "mine", to))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
