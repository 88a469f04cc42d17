"""`--html` as a user meets it."""

import pytest

from fixtures import pipeline as rows
from tunegrid.tests.sessions import run

pytestmark = pytest.mark.slow

CELL = "gpt2_sa_lora"


def test_a_session_leaves_a_page_with_what_its_test_rows_say(tmp_path):
    target = tmp_path / "out" / "page.html"
    code, output, [record] = run(tmp_path, "-m", "quick", "--cells", CELL, "--set", "max_steps=4", f"--html={target}")
    assert code == 0, output
    assert f"page: {target}" in output
    content = target.read_text()
    assert "Passed: the one cell ran to the end, without bounds, " in content
    assert f'id="{CELL}"' in content
    assert "16 of 16 rows" in content
    assert '<th scope="col">input</th><th scope="col">reference</th>' in content
    beside = {path.name for path in (tmp_path / "examples").iterdir()}
    modules = record["training"]["first_step"]["modules"]
    assert beside == {record["examples"]["file"], f"rows-{record['examples']['rows_hash']}.parquet", modules}


def test_a_page_of_a_session_without_cells_says_so_and_one_that_cannot_be_written_fails(tmp_path):
    quiet = "lib/tunegrid/tests/fixtures/test_progress.py"
    code, _, _ = run(tmp_path, f"--html={tmp_path / 'page.html'}", quiet)
    assert code == 0
    assert "this run holds no cell that was run" in (tmp_path / "page.html").read_text()
    (tmp_path / "file").write_text("")
    code, output, _ = run(tmp_path, f"--html={tmp_path / 'file' / 'page.html'}", quiet)
    assert code == pytest.ExitCode.INTERNAL_ERROR
    assert "cannot be written" in output
    assert "tunegrid page makes it of the saved run" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("target", "labels", "words"),
    [
        (1, ("negative", "positive"), "positive"),
        ({"text": ["in May", "May", "in May"], "answer_start": [3, 6, 3]}, (), "in May | May"),
        ("a summary", (), "a summary"),
    ],
)
def test_what_should_have_been_answered_in_words(target, labels, words):
    assert rows.in_words(target, labels) == words
